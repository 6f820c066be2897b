"""What one layer's experts are: weights, biases, and the function between the two products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tilewright.ir.errors import BindError, SettingError
from tilewright.runtime import lowbit
from tilewright.runtime.quantized.tensor import QuantizedTensor

Weight = torch.Tensor | QuantizedTensor | tuple[QuantizedTensor, ...]
Function = Callable[[torch.Tensor], torch.Tensor]
HALVES = "halves"  # columns of the first product: all of the gate, then all of up
PAIRS = "pairs"  # gate, up, gate, up, …
ALL = "all"  # there is no gate
FUNCTIONS: dict[str, Function] = {
    **lowbit.FUNCTIONS,
    "relu2": lambda y: torch.relu(y).square(),
}


def split_columns(y: torch.Tensor, columns: str, dim: int = -1) -> tuple[torch.Tensor, ...]:
    """gate and up as views of ``y``, along the dimension of the first product's columns; ``y``
    itself without a gate."""
    if columns == ALL:
        return (y,)
    if columns == HALVES:
        return y.chunk(2, dim)
    rows = y.movedim(dim, 0)
    return rows[::2].movedim(0, dim), rows[1::2].movedim(0, dim)


def merge_columns(gate: torch.Tensor, up: torch.Tensor, columns: str) -> torch.Tensor:
    """gate and up [S, I] as the columns [S, 2I] of one product."""
    if columns == PAIRS:
        return torch.stack((gate, up), dim=-1).flatten(-2)
    return torch.cat((gate, up), dim=-1)


@dataclass(frozen=True)
class Gate:
    """From the first product to the second: ``function(min(g, limit)) * (clamp(u, -limit, limit) +
    shift)`` for the columns g and u of gate and up, or ``function(u)`` where there is no gate.

    ``alpha`` makes silu ``g * sigmoid(alpha * g)``; gpt-oss has alpha 1.702, limit 7, shift 1.
    ``call``, if it is there, counts instead of all this: it takes the whole first product [S, 2I]
    with its columns in the order of the form (without a gate [S, I]) and returns [S, I].
    """

    function: str = "silu"
    alpha: float = 1.0
    limit: float | None = None
    shift: float = 0.0
    call: Function | None = None

    def __post_init__(self) -> None:
        """Raises SettingError."""
        if self.function not in FUNCTIONS:
            raise SettingError(f"function={self.function!r} must be one of {', '.join(FUNCTIONS)}")
        if self.alpha != 1.0 and self.function != "silu":
            raise SettingError(f"alpha={self.alpha} needs function='silu', not {self.function!r}")

    @property
    def plain(self) -> bool:
        """Whether it is ``function(g) * u``."""
        return self == Gate(self.function)

    def apply(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """g, u [S, I] -> [S, I]"""
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        if self.alpha == 1.0:
            y = FUNCTIONS[self.function](gate)
        else:
            y = gate * torch.sigmoid(gate * self.alpha)
        return y * (up + self.shift) if self.shift else y * up

    def between(self, y: torch.Tensor, columns: str) -> torch.Tensor:
        """The first product [S, 2I] (without a gate [S, I]) -> what the second one takes, [S, I]"""
        if self.call is not None:
            return self.call(y)
        if columns == ALL:
            return FUNCTIONS[self.function](y)
        return self.apply(*split_columns(y, columns))


@dataclass(frozen=True, eq=False)
class Product:
    """``x @ weight[e].T + bias[e]`` for every expert e.

    ``weight`` is a tensor [E, N, K] (``transposed``: [E, K, N]), a quantised one [E, N, K] or
    [E, 2, N/2, K], gate and up apart, or one quantised [N, K] or [2, N/2, K] for each expert, of
    any dtypes. ``bias`` is [E, N]. ``activation`` ("float", "int8") is that of quantised weights.
    """

    weight: Weight
    bias: torch.Tensor | None = None
    transposed: bool = False
    activation: str = "float"

    def __post_init__(self) -> None:
        """Raises BindError."""
        shapes = self._shapes
        if not shapes or any(s != shapes[0] or len(s) not in (2, 3) for s in shapes):
            found = ", ".join(dict.fromkeys(str(list(shape)) for shape in shapes)) or "none"
            raise BindError(f"the experts' weights must be matrices of one shape; they are {found}")
        if self.quantised and self.transposed:
            raise BindError("quantised weights must be [E, N, K]; transpose them when packing")
        if self.bias is not None and self.bias.shape != (self.experts, self.rows):
            raise BindError(
                f"the experts' biases must be {[self.experts, self.rows]}; they are "
                f"{list(self.bias.shape)}"
            )

    @property
    def quantised(self) -> bool:
        return not isinstance(self.weight, torch.Tensor)

    @property
    def experts(self) -> int:
        """E"""
        return len(self.weight) if isinstance(self.weight, tuple) else int(self.weight.shape[0])

    @cached_property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of single experts."""
        if isinstance(self.weight, tuple):
            return tuple(w.shape for w in self.weight)
        return (tuple(self.weight.shape[1:]),)

    @property
    def apart(self) -> bool:
        """Whether gate and up of an expert are two matrices."""
        return len(self._shapes[0]) == 3

    @property
    def rows(self) -> int:
        """N"""
        shape = self._shapes[0]
        return shape[1] if self.transposed else shape[0] * shape[1] if self.apart else shape[0]

    @property
    def columns(self) -> int:
        """K"""
        return self._shapes[0][0 if self.transposed else -1]

    @cached_property
    def each(self) -> tuple[QuantizedTensor, ...]:
        """By expert, its quantised weight; always the same objects, for which kernels keep things.
        Empty for floats."""
        if isinstance(self.weight, torch.Tensor):
            return ()
        return tuple(self.weight[e] for e in range(self.experts))

    @cached_property
    def halves(self) -> tuple[tuple[QuantizedTensor, QuantizedTensor], ...]:
        """By expert, gate and up, where they are apart."""
        return tuple((w[0], w[1]) for w in self.each)

    @cached_property
    def biases(self) -> tuple[torch.Tensor | None, ...]:
        """By expert, its bias [N]."""
        if self.bias is None:
            return (None,) * self.experts
        return self.bias.detach().unbind(0)

    def bias_halves(self, columns: str) -> tuple[tuple[torch.Tensor | None, ...], ...]:
        """By expert, the biases of gate and up; always the same objects."""
        return self._bias_pairs if columns == PAIRS else self._bias_halves

    @cached_property
    def _bias_halves(self) -> tuple[tuple[torch.Tensor | None, ...], ...]:
        return self._split_biases(HALVES)

    @cached_property
    def _bias_pairs(self) -> tuple[tuple[torch.Tensor | None, ...], ...]:
        return self._split_biases(PAIRS)

    def _split_biases(self, columns: str) -> tuple[tuple[torch.Tensor | None, ...], ...]:
        return tuple((None, None) if b is None else split_columns(b, columns) for b in self.biases)


@dataclass(frozen=True, eq=False)
class ExpertsForm:
    """One layer's experts, ``down(gate(first(x)))`` each.

    ``first`` is one product of gate and up [E, 2I, H], whose columns ``columns`` tells apart; two
    products [E, I, H], gate and up; or without a gate (``ALL``) up alone. ``after`` is a function
    of each expert's result [S, H], such as a norm. ``skip``: ids from E on stand for no expert, as
    in expert parallelism.
    """

    first: tuple[Product, ...]
    down: Product
    gate: Gate = Gate()
    columns: str = HALVES
    after: Function | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        """Raises BindError if the products do not follow each other."""
        wide = sum(p.rows for p in self.first)
        inner = wide if self.columns == ALL else wide // 2
        each = {p.experts for p in (*self.first, self.down)}
        sizes = {p.columns for p in self.first}
        split = self.columns != ALL and (wide % 2 or len({p.rows for p in self.first}) > 1)
        if len(each) > 1 or len(sizes) > 1 or split or inner != self.down.columns:
            shapes = [[p.experts, p.rows, p.columns] for p in (*self.first, self.down)]
            raise BindError(
                f"experts need weights [E, {'' if self.columns == ALL else '2'}I, H] and "
                f"[E, H, I]; these are {', '.join(map(str, shapes))}"
            )

    @cached_property
    def prepared(self) -> dict[Any, Any]:
        """What calls have prepared for those like them, by what decides it. Nothing in it may refer
        to the form: weights go with it at once."""
        return {}

    @cached_property
    def experts(self) -> int:
        """E"""
        return self.down.experts

    @cached_property
    def hidden(self) -> int:
        """H"""
        return self.first[0].columns

    @property
    def intermediate(self) -> int:
        """I"""
        return self.down.columns
