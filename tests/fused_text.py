"""The words of which the programs in ``fused_programs`` are made, and what their parts mean.

``Case.text`` is a tensor-level program whose inputs are drawn by ``Case.inputs`` for the sizes of
``Case.sizes``; ``Case.reference`` computes the results in float64, written out plainly. Rows are
``N``, the long axis is ``M``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

Tensors = tuple[torch.Tensor, ...]
D, E, K = 16, 8, 64  # of queries and keys, of values, of hidden rows


@dataclass(frozen=True)
class Case:
    """One program. ``inputs`` are named shapes in N and M, with kinds for those not normal."""

    params: str
    body: str
    reference: Callable[..., torch.Tensor | Tensors]
    results: str = "%o"
    kinds: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return f"graph f<N, M>({self.params}) {{\n{self.body}\nreturn {self.results} }}"

    def narrow(self, dtype: str) -> Case:
        """The same with floats of a narrow dtype as inputs, widened to f32 before all else."""
        params, body, casts = self.params.replace("x f32>", f"x {dtype}>"), self.body, ""
        for name, param in zip(self.names, params.split("%")[1:], strict=True):
            if f"x {dtype}>" in param:
                body = re.sub(rf"%{name}\b", f"%{name}_wide", body)
                casts += f"%{name}_wide = math.cast %{name} {{dtype = f32}}\n"
        return replace(self, params=params, body=casts + body)

    @property
    def names(self) -> list[str]:
        """Of the inputs, in order."""
        return [param.partition(":")[0].strip() for param in self.params.split("%")[1:]]

    def inputs(self, rows: int, length: int, seed: int = 0) -> Tensors:
        """Normal numbers; ``labels`` below M, ``positive`` between 0.5 and 2, ``mask`` of bools."""
        rng = torch.Generator().manual_seed(seed)
        out = []
        for param in self.params.split("%")[1:]:
            name, _, type_ = param.partition(":")
            dims = type_.strip(" ,>").removeprefix("tensor<").split(" x ")[:-1]
            sizes = {"N": rows, "M": length}
            shape = [sizes[d] if d in sizes else int(d) for d in dims]
            out.append(_draw(dict(self.kinds).get(name.strip(), ""), shape, length, rng))
        return tuple(out)


def _draw(kind: str, shape: list[int], length: int, rng: torch.Generator) -> torch.Tensor:
    if kind == "labels":
        return torch.randint(0, max(1, length), shape, generator=rng)
    if kind == "positive":
        return torch.rand(shape, generator=rng) * 1.5 + 0.5
    if kind == "mask":
        return torch.rand(shape, generator=rng) < 0.7
    x = torch.randn(shape, generator=rng)
    return x * 0.25 if len(shape) == 2 and shape[-1] == D else x


QK = f"%q: tensor<N x {D} x f32>, %k: tensor<M x {D} x f32>"
QKV = f"{QK}, %v: tensor<M x {E} x f32>"
SCORES = '%s = tensor.contract %q, %k {equation = "nd,md->nm"}\n'


def const(name: str, value: float | str) -> str:
    return f"%{name} = math.const {{value = {value}, type = tensor<f32>}}\n"


def reduce(out: str, x: str, kind: str = "sum", keep: bool = True) -> str:
    kept = str(keep).lower()
    return f'%{out} = tensor.reduce %{x} {{kind = "{kind}", axis = 1, keep = {kept}}}\n'


def weighted(p: str, v: str = "v", out: str = "o") -> str:
    return f'%{out} = tensor.contract %{p}, %{v} {{equation = "nm,me->ne"}}\n'


def softmax(x: str, out: str = "p", safe: bool = False) -> str:
    return f"%{out} = tensor.softmax %{x} {{axis = 1, safe = {str(safe).lower()}}}\n"


def exponentials(x: str = "s") -> str:
    """%top, %e, %l of scores."""
    return (
        reduce("top", x, "max") + f"%d = math.sub %{x}, %top\n%e = math.exp %d\n" + reduce("l", "e")
    )


def lse(x: str = "s") -> str:
    return exponentials(x) + "%logl = math.log %l\n%lse = math.add %logl, %top\n"


LOG_SOFTMAX = lse() + "%logp = math.sub %s, %lse\n"
LABELS = (
    "%j = tensor.iota {axis = 1, type = tensor<1 x M x i64>}\n"
    '%hit = math.compare %j, %labels {relation = "eq"}\n'
)


def p_of(s: torch.Tensor) -> torch.Tensor:
    return torch.softmax(s, -1)


def entropy_of(s: torch.Tensor) -> torch.Tensor:
    p = p_of(s)
    return -(p * torch.log_softmax(s, -1)).sum(-1, keepdim=True)


COUNT = (
    const("one", 1.0)
    + "%ones = tensor.broadcast %one {shape = [size(N), size(M)]}\n"
    + reduce("n", "ones")
)
RMS_NORM = (
    "%x2 = math.mul %x, %x\n"
    + reduce("sum", "x2")
    + const("count", 1 / K)
    + "%mean = math.mul %sum, %count\n"
    + const("eps", 1e-6)
    + "%below = math.add %mean, %eps\n%r = math.rsqrt %below\n%y = math.mul %x, %r\n"
    "%z = math.mul %y, %g\n"
)
LAYER_NORM = (
    reduce("sum", "x")
    + const("count", 1 / K)
    + "%mean = math.mul %sum, %count\n%d = math.sub %x, %mean\n%d2 = math.mul %d, %d\n"
    + reduce("squares", "d2")
    + "%var = math.mul %squares, %count\n"
    + const("eps", 1e-5)
    + "%below = math.add %var, %eps\n%r = math.rsqrt %below\n%y = math.mul %d, %r\n"
    "%z = math.mul %y, %g\n%zb = math.add %z, %b\n"
)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()
