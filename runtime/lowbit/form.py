"""What a compiled product is for, and its tensor program."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.activation_functions import activated
from tilewright.ir.core import Builder, Graph, Module, Region, Value
from tilewright.ir.dtypes import F32, I32, U8, DType
from tilewright.ir.ops_lowbit import Dequantize
from tilewright.ir.packing import Packing
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.lowbit.info import WeightForm

EPILOGUES = ("", "relu", "silu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class LinearForm:
    """A program ``epilogue(x @ w0.T + b0) [* (x @ w1.T + b1)] + residual``; the numbers of rows M
    and N are free. ``narrow``: x is read in its own 16 bits, not f32. ``label`` tells the weights
    of programs that run side by side apart."""

    weights: tuple[WeightForm, ...]
    length: int
    integer: bool
    x: DType
    residual: DType | None
    epilogue: str
    label: str = ""
    narrow: bool = False

    @property
    def activation_group(self) -> int:
        """Activations that share a scale: those of the weights' group."""
        return max(1, min(self.weights[0].layout.group, self.length))


class LinearBuilder:
    """Builds the tensor program of a form. Inputs: x (or its codes, steps and sums), for every
    weight its words, scales, zeros and bias, then the residual."""

    def __init__(self, form: LinearForm) -> None:
        self.form, self.b = form, Builder()
        self.params: list[Value] = []
        self.rows, self.length = Size.of("M"), Size.of(form.length)
        self.blocks = Size.of(f"N{form.label}")

    def module(self) -> Module:
        form, b = self.form, self.b
        x = self.activations()
        first, *others = [self.product(x, w, str(at)) for at, w in enumerate(form.weights)]
        y = activated(b, self.number, form.epilogue, first)
        for other in others:
            y = b(m.Mul, y, other, hint="y")
        if form.residual is not None:
            shape = (self.rows, self.blocks * form.weights[0].layout.lanes)
            residual = self.wide(self.param("residual", shape, form.residual))
            y = b(m.Add, y, residual, hint="y")
        if form.x != F32:
            y = b(m.Cast, y, dtype=form.x, hint="y")
        y.hint = f"y{form.label}"
        sizes = [s for p in self.params for s in getattr(p.type, "shape", ())]
        names = tuple(dict.fromkeys(n for s in sizes for n in sorted(s.names)))
        region = Region(tuple(self.params), tuple(b.ops), (y,))
        return Module((Graph("graph", "linear", names, region),))

    def param(self, hint: str, shape: tuple[Size, ...], dtype: DType) -> Value:
        self.params.append(Value(TensorType(shape, dtype), hint))
        return self.params[-1]

    def activations(self) -> Value:
        """x [M, K]: in memory, or as bytes with a scale and a sum for each group."""
        form = self.form
        if not form.integer:
            dtype = form.x if form.narrow else F32
            return self.wide(self.param("x", (self.rows, self.length), dtype))
        codes = self.param("codes", (self.rows, Size.of("Q")), I32)
        steps = self.param("steps", (self.rows, Size.of("R")), F32)
        sums = self.param("sums", (self.rows, Size.of("R")), I32)
        return self.b(
            Dequantize,
            codes,
            steps,
            sums,
            packing=str(Packing.quads(8, 1, form.activation_group)),
            dtype=U8,
            signed=True,
            extra="sums",
            length=self.length,
            hint="x",
        )

    def product(self, x: Value, weight: WeightForm, number: str) -> Value:
        """x times one weight, plus its bias."""
        b, label = self.b, f"{self.form.label}_{number}"
        groups = Size.of(f"G{label}")
        words = self.param(f"words{label}", (self.blocks, Size.of(f"S{label}")), I32)
        scales = self.param(f"scales{label}", (self.blocks, groups), weight.scales)
        more = []
        if weight.zeros is not None:
            more = [self.param(f"zeros{label}", (self.blocks, groups), weight.zeros)]
        w = b(
            Dequantize,
            words,
            scales,
            *more,
            packing=weight.packing,
            dtype=weight.dtype,
            length=self.length,
            zero=weight.zero,
            extra="zeros" if more else "",
            scale=weight.scale_dtype,
            hint="w",
        )
        y = b(t.Contract, x, w, equation="mk,nk->mn", hint="y")
        if weight.bias is not None:
            columns = self.blocks * weight.layout.lanes
            bias = self.wide(self.param(f"bias{label}", (columns,), weight.bias))
            y = b(m.Add, y, bias, hint="y")
        return y

    def number(self, value: float) -> Value:
        return self.b(m.Const, value=value, type=TensorType((), F32), hint="c")

    def wide(self, x: Value) -> Value:
        assert isinstance(x.type, TensorType)
        return x if x.type.dtype == F32 else self.b(m.Cast, x, dtype=F32, hint=x.hint)
