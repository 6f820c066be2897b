"""Products of rows with packed weights as programs, their inputs, and how wrong a result may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_lowbit import decoded
from tilewright.ir.packing import Packing
from tilewright.ir.parser import parse
from tilewright.passes.to_tile.lowbit.activations import quantise_rows
from tilewright.runtime.program import Program
from tilewright.runtime.targets import resolve_target
from tilewright.runtime.tile_kernel import make_tile_kernel

UNIT = 2.0**-24  # of a rounding in f32, relative
TORCH = {"bf16": torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    """A weight matrix: how its codes lie and what stands beside them.

    ``zeros`` is the dtype of a tensor of zeros, "" for the constant ``zero``.
    """

    dtype: str = "u4"
    group: int = 32
    order: str = "quads"
    zero: int = 0
    zeros: str = ""
    scales: str = "f16"

    def packing(self, lanes: int) -> Packing:
        return getattr(Packing, self.order)(TABLE[self.dtype].bits, lanes, self.group)

    def __str__(self) -> str:
        zero = self.zeros or self.zero
        return f"{self.dtype}-{self.order}-{self.group}-{self.scales}-zero_{zero}"


@dataclass(frozen=True)
class Form:
    """``(x @ w0.T) [silu, * (x @ w1.T)] [+ bias] [+ residual]``, with x in f32, bf16 or, if
    ``activation`` is not 0, as bytes in groups of so many."""

    weights: tuple[Weight, ...]
    length: int
    activation: int = 0
    end: tuple[str, ...] = ()
    x: str = "f32"

    def __str__(self) -> str:
        kind = f"int8_{self.activation}" if self.activation else self.x
        return "+".join([*map(str, self.weights), f"k{self.length}", kind, *self.end])

    def text(self, lanes: int) -> str:
        """The tensor program."""
        params, lines, sizes = [], [], ["M", "N"]
        if self.activation:
            sizes += ["XS", "XG"]
            params += ["%q: tensor<M x XS x i32>", "%step: tensor<M x XG x f32>"]
            params += ["%sum: tensor<M x XG x i32>"]
            lines += [
                f'%x = tensor.dequantize %q, %step, %sum {{packing = "quads(8) lanes 1 group '
                f'{self.activation}", dtype = u8, length = size({self.length}), signed = true, '
                f'extra = "sums"}}'
            ]
        else:
            params += [f"%x_given: tensor<M x {self.length} x {self.x}>"]
            lines += ["%x = math.cast %x_given {dtype = f32}"]
        for at, w in enumerate(self.weights):
            encoded = TABLE[w.scales].bits == 8
            sizes += [f"S{at}", f"G{at}"]
            params += [f"%w{at}_words: tensor<N x S{at} x i32>"]
            params += [f"%w{at}_scales: tensor<N x G{at} x {'u8' if encoded else w.scales}>"]
            given = f"%w{at}_words, %w{at}_scales"
            attrs = f'packing = "{w.packing(lanes)}", dtype = {w.dtype}, zero = {w.zero}'
            attrs += f", scale = {w.scales}" if encoded else ""
            if w.zeros:
                params += [f"%w{at}_zeros: tensor<N x G{at} x {w.zeros}>"]
                given, attrs = f"{given}, %w{at}_zeros", f'{attrs}, extra = "zeros"'
            lines += [
                f"%w{at} = tensor.dequantize {given} {{{attrs}, length = size({self.length})}}",
                f'%p{at} = tensor.contract %x, %w{at} {{equation = "mk,nk->mn"}}',
            ]
        value = "%p0"
        if "silu" in self.end:
            lines += ["%g = math.sigmoid %p0", "%s = math.mul %p0, %g"]
            value = "%s"
        if len(self.weights) == 2:
            lines += [f"%y1 = math.mul {value}, %p1"]
            value = "%y1"
        for name, shape in (("bias", f"({lanes}*N)"), ("residual", f"M x ({lanes}*N)")):
            if name in self.end:
                params += [f"%{name}: tensor<{shape} x f32>"]
                lines += [f"%with_{name} = math.add {value}, %{name}"]
                value = f"%with_{name}"
        body = "\n".join(lines)
        head = f"graph product<{', '.join(sizes)}>({', '.join(params)})"
        return f"{head} {{\n{body}\nreturn {value}\n}}"


@dataclass
class Problem:
    """Inputs of a form, and the magnitudes that its results' errors go with."""

    inputs: list[Any]
    sizes: list[Any] = field(default_factory=list)  # of each product: sum of |x| * |w|
    products: list[Any] = field(default_factory=list)


def draw(form: Form, lanes: int, rows: int, blocks: int, seed: int, x: Any = None) -> Problem:
    """Inputs with codes of every value; ``x`` [rows, length] if given, else drawn."""
    rng, n, k = np.random.default_rng(seed), blocks * lanes, form.length
    if x is None:
        x = rng.standard_normal((rows, k)).astype("f4")
    x = np.asarray(TABLE[form.x].round(x), "f4")
    problem = Problem([x])
    if form.activation:
        problem.inputs, x = quantised(x, form.activation)
    for w in form.weights:
        packing, dtype = w.packing(lanes), TABLE[w.dtype]
        codes = rng.integers(0, 1 << packing.bits, (n, k)).astype(np.uint8)
        bad = ~np.isfinite(decoded(np.arange(1 << packing.bits, dtype=np.uint8), dtype))
        codes[bad[codes]] = 1  # kernels take codes of infinities and NaN for numbers
        groups = packing.groups(k)
        values = decoded(codes, dtype)
        largest = np.abs(values).max(initial=1.0) + max(abs(w.zero), 1 << packing.bits)
        most = F16_MOST / largest if form.x == "f16" else np.inf  # weights become numbers of x's
        held, scales = draw_scales(rng, (n, groups), w.scales, most)
        zeros = np.full((n, groups), float(w.zero))
        beside = [held]
        if w.zeros:
            zeros = draw_zeros(rng, (n, groups), w.zeros, packing.bits)
            beside.append(zeros.astype("f4" if w.zeros == "bf16" else TORCH_NAMES[w.zeros]))
        problem.inputs.append(
            packing.pack(codes).reshape(blocks, packing.chunks(k) * packing.words * lanes)
        )
        problem.inputs += [packing.pack_groups(a).reshape(blocks, groups * lanes) for a in beside]

        def wide(numbers: Any, group: int = w.group) -> Any:
            return np.repeat(numbers, group, axis=1)[:, :k]

        wx = np.asarray(x, "f8")
        problem.products.append(wx @ ((values - wide(zeros)) * wide(scales)).T)
        size = (np.abs(values) + np.abs(wide(zeros))) * np.abs(wide(scales))
        problem.sizes.append(np.abs(wx) @ size.T)
    if "bias" in form.end:
        problem.inputs.append(rng.standard_normal(n).astype("f4"))
    if "residual" in form.end:
        problem.inputs.append(rng.standard_normal((rows, n)).astype("f4"))
    return problem


F16_MOST = 65504.0
TORCH_NAMES = {"u8": "u1", "f16": "f2", "f32": "f4"}


def draw_scales(
    rng: np.random.Generator, shape: tuple[int, int], dtype: str, most: float
) -> tuple[Any, Any]:
    """Scales as they are stored, and their values; of those in bytes none above ``most``."""
    if TABLE[dtype].bits == 8:
        finite = {"e8m0": (117, 137), "f8e4m3": (1, 127)}[dtype]
        codes = rng.integers(*finite, shape).astype(np.uint8)
        codes[TABLE[dtype].decode(codes) > most] = finite[0]
        return codes, np.asarray(TABLE[dtype].decode(codes), "f8")
    values = np.asarray(TABLE[dtype].round(rng.standard_normal(shape)), "f4")
    return (values.astype("f2") if dtype == "f16" else values), values.astype("f8")


def draw_zeros(rng: np.random.Generator, shape: tuple[int, int], dtype: str, bits: int) -> Any:
    """Zeros in units of codes: whole numbers, or anything about as large."""
    if dtype == "u8":
        return rng.integers(0, 1 << bits, shape).astype("f8")
    return np.asarray(TABLE[dtype].round(rng.uniform(-1, 1 << bits, shape)), "f8")


def quantised(x: Any, group: int) -> tuple[list[Any], Any]:
    """Rows as bytes, steps and sums by plain NumPy, and the values that they stand for."""
    rows, k = x.shape
    groups, padded = -(-k // group), -(-group // 4) * 4
    even = np.zeros((rows, groups, padded), "f4")
    for at in range(groups):
        part = x[:, at * group : (at + 1) * group]
        even[:, at, : part.shape[1]] = part
    largest = np.abs(even).max(axis=2, initial=0.0)
    steps = (largest * np.float32(1 / 127)).astype("f4")
    with np.errstate(all="ignore"):
        inverse = np.where(largest > 1e-36, np.float32(127) / largest, np.float32(0)).astype("f4")
    codes = np.rint(even * inverse[:, :, None]).astype("i4")
    sums = codes.sum(axis=2).astype("i4")
    held = np.frombuffer(codes.astype("i1").tobytes(), "i4").copy()
    words = held.reshape(rows, groups * padded // 4)
    values = codes[:, :, :group].astype("f8") * steps[:, :, None]
    return [words, steps, sums], values.reshape(rows, groups * group)[:, :k]


def bound(form: Form, problem: Problem, want: Any) -> Any:
    """How far a result may be from ``want``, from the roundings that lead to it.

    A product of floats rounds once for every code, group, scale and zero; one of bytes only for
    every group, since it is exact within one. Each rounding is relative to what is summed. silu
    has a slope of at most 1.1, and costs a few roundings of its own.
    """
    k = form.length
    errors = []
    for w, size in zip(form.weights, problem.sizes, strict=True):
        groups = -(-k // (form.activation or w.group))
        terms = groups + 8 if form.activation else k + groups + 8
        errors.append(terms * UNIT * size)
    error, value = errors[0], np.abs(problem.products[0])
    if "silu" in form.end:
        error = 1.1 * error + 16 * UNIT * value
    if len(form.weights) == 2:
        other = np.abs(problem.products[1])
        error = error * (other + errors[1]) + value * errors[1] + UNIT * value * other
    extra = sum(np.abs(a) for a in problem.inputs[len(problem.inputs) - len(ADDED & {*form.end}) :])
    return error + 4 * UNIT * (np.abs(want) + extra) + 1e-37


ADDED = {"bias", "residual"}


@cache
def program(form: Form, target: str, backend: str = "mlir") -> Program:
    """The compiled form. ``target`` names lanes, too."""
    return Program(parse(form.text(lanes_of(target))), target=target, backend=backend)


def lanes_of(target: str) -> int:
    return resolve_target(target).lanes


def tensors(form: Form, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The inputs as torch tensors; bf16 numbers are held as f32 by NumPy."""
    made = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs]
    if form.x == "bf16":
        made[0] = made[0].bfloat16()
    at = 3 if form.activation else 1
    for w in form.weights:
        if w.scales == "bf16":
            made[at + 1] = made[at + 1].bfloat16()
        if w.zeros == "bf16":
            made[at + 2] = made[at + 2].bfloat16()
        at += 3 if w.zeros else 2
    return made


def oracle(form: Form, lanes: int, inputs: Sequence[Any]) -> Any:
    """The result in float64."""
    return evaluate(parse(form.text(lanes)), *inputs, precision="f64")[0]


def check(
    form: Form,
    rows: int,
    blocks: int,
    *,
    target: str = "host",
    backend: str = "mlir",
    seed: int = 0,
    x: Any = None,
) -> torch.Tensor:
    """Runs a form on drawn inputs; the result is within the bound. Returns it."""
    lanes = 1 if backend == "numba" else lanes_of(target)
    problem = draw(form, lanes, rows, blocks, seed, x)
    compiled = program(form, "scalar" if backend == "numba" else target, backend)
    # an axis of one element is none: then the program runs as it is written
    assert compiled.supported == (form.length != 1) and len(compiled.steps) == 1
    (got,) = compiled(*tensors(form, problem.inputs))
    want = oracle(form, lanes, problem.inputs)
    assert tuple(got.shape) == want.shape == (rows, blocks * lanes)
    wrong = np.abs(got.double().numpy() - want) - bound(form, problem, want)
    assert not (wrong > 0).any(), (str(form), rows, blocks, float(wrong.max()))
    assert np.isfinite(got.numpy()).all()
    return got


@cache
def rounding(length: int, group: int, dtype: DType, target: str, backend: str) -> Any:
    """The kernel that makes bytes of rows."""
    made = resolve_target(target)
    return make_tile_kernel(quantise_rows(length, group, dtype, made), made, backend)
