"""A random tensor-level program under construction: values so far, and the steps that add one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, I64, DType
from tilewright.ir.sizes import Size, SizeLike
from tilewright.ir.types import TensorType

Draw = st.DrawFn
ONE = Size.of(1)
TYPICAL = 32  # elements of a dimension, where a bound wants to know
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Drawn:
    """A program; ``values``: kinds of numbers that an input may hold, the plainest first;
    ``most``: the largest value of each size name."""

    module: Module
    values: dict[str, tuple[str, ...]]
    most: dict[str, int]


@dataclass(frozen=True)
class Known:
    """A value of the program with a rough bound on its magnitude, so that what is drawn does not
    all overflow."""

    value: Value
    bound: float

    @property
    def type(self) -> TensorType:
        assert isinstance(self.value.type, TensorType)
        return self.value.type

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


def is_float(known: Known) -> bool:
    return known.dtype.is_float


FLOAT_VALUES = ("normal", "whole", "mixed", "normal:1000", "normal:1e-20", "constant:0", "odd")
TAME = ("normal", "whole", "mixed:4")


@dataclass
class Sketch:
    """A program being drawn; ``most`` has its size names."""

    draw: Draw
    most: dict[str, int]
    build: Builder = field(default_factory=Builder)
    params: list[Value] = field(default_factory=list)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pool: list[Known] = field(default_factory=list)
    count: int = 0

    # ---- small tools

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def chance(self, one_in: int) -> bool:
        """True once in so many; false when shrunk."""
        return self.draw(st.integers(0, one_in - 1)) == one_in - 1

    def some(self, test: Callable[[Known], bool] = lambda _: True) -> Known | None:
        """A value of the pool, late ones more often, or None if none passes ``test``."""
        good = [k for k in self.pool if test(k)]
        found: Known | None = self.pick((good + 2 * good[-2:])[::-1]) if good else None
        return found

    def extent(self, size: Size) -> int:
        names = {name: min(TYPICAL, most) for name, most in self.most.items()}
        return size.evaluate(names)

    def param(
        self,
        shape: Sequence[SizeLike],
        dtype: DType = F32,
        values: Sequence[str] = FLOAT_VALUES,
        hint: str = "",
    ) -> Known:
        """A new input."""
        hint = hint or f"x{LETTERS[len(self.params)]}"
        value = Value(TensorType.of(list(shape), dtype), hint)
        self.params.append(value)
        self.values[hint] = tuple(values)
        known = Known(value, 6.0)
        self.pool.append(known)
        return known

    def wide(self, known: Known, dtype: DType = F32) -> Known:
        """The value in f32."""
        return known if known.dtype == dtype else self.op(m.Cast, known, dtype=dtype)

    def op(
        self, cls: type[Op], *operands: Known, bound: float = 0.0, hint: str = "", **attrs: Any
    ) -> Known:
        """A new value; its bound is, if nothing is said, the largest of the operands'."""
        self.count += 1
        high, low = divmod(self.count, 26)
        hint = hint or f"v{LETTERS[high % 26] if high else ''}{LETTERS[low]}"
        value = self.build(cls, *[k.value for k in operands], hint=hint, **attrs)
        return Known(value, bound or max((k.bound for k in operands), default=1.0))

    def const(self, number: float, dtype: DType = F32) -> Known:
        kind = TensorType((), dtype)
        return Known(self.build(m.Const, value=number, type=kind, hint="c"), abs(number))

    def keep(self, known: Known | None) -> None:
        if known is not None:
            self.pool.append(known)

    def finish(self, *results: Known, name: str = "program") -> Drawn:
        """The program, with the size names that occur in its inputs."""
        names = [n for p in self.params if isinstance(p.type, TensorType) for n in _names(p.type)]
        sizes = tuple(dict.fromkeys(names))
        body = Region(tuple(self.params), tuple(self.build.ops), tuple(k.value for k in results))
        module = Module((Graph("graph", name, sizes, body),))
        return Drawn(module, self.values, {n: self.most[n] for n in sizes})

    # ---- what several kinds of programs are made of

    def mul(self, a: Known, b: Known | float) -> Known:
        b = self.const(b, a.dtype) if isinstance(b, float) else b
        return self.op(m.Mul, a, b, bound=a.bound * b.bound)

    def add(self, a: Known, b: Known | float) -> Known:
        b = self.const(b, a.dtype) if isinstance(b, float) else b
        return self.op(m.Add, a, b, bound=a.bound + b.bound)

    def sub(self, a: Known, b: Known) -> Known:
        return self.op(m.Sub, a, b, bound=a.bound + b.bound)

    def div(self, a: Known, b: Known) -> Known:
        return self.op(m.Div, a, b, bound=a.bound)

    def exp(self, a: Known) -> Known:
        return self.op(m.Exp, a, bound=math.exp(min(a.bound, 80)))

    def reduce(self, x: Known, kind: str = "sum", axis: int = -1, keep: bool = True) -> Known:
        many = self.extent(x.shape[axis]) if kind == "sum" else 1
        bound = x.bound * max(1, many)
        return self.op(t.Reduce, x, bound=bound, kind=kind, axis=axis, keep=keep)

    def contract(self, equation: str, a: Known, b: Known) -> Known:
        left, out = equation.split("->")
        letters = dict(zip(left.replace(",", ""), a.shape + b.shape, strict=True))
        many = math.prod(self.extent(s) for letter, s in letters.items() if letter not in out)
        bound = 3 * a.bound * b.bound * max(1.0, many**0.5) / 9
        return self.op(t.Contract, a, b, bound=bound, equation=equation)

    def positive(self, x: Known) -> Known:
        """|x| + 1: something to divide by and to take roots and logarithms of."""
        return self.add(self.op(m.Abs, x), 1.0)

    def iota(self, shape: Sequence[SizeLike], axis: int) -> Known:
        kind = TensorType.of(list(shape), I64)
        return self.op(t.Iota, bound=float(TYPICAL), axis=axis, type=kind)


def _names(type_: TensorType) -> list[str]:
    return [name for size in type_.shape for name in size.names]


def broadcastable(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """True if two shapes broadcast as in NumPy for all values of their names."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(x == y or ONE in (x, y) for x, y in pairs)


NARROW = (BF16, F16)
__all__ = ["BOOL", "FLOAT_VALUES", "NARROW", "ONE", "TAME", "Drawn", "Known", "Sketch"]
