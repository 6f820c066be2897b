"""What a handler emits with: short forms for the IR operations of one region.

Sixteen-bit floats are only stored: arithmetic on them is done in f32 and rounded back, as torch
does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import NOWHERE, Attr, Builder, Op, Value
from tilewright.ir.dtypes import BOOL, F32, I64, DType
from tilewright.ir.errors import Location, UnsupportedError
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import TensorType

Shape = tuple[Size, ...]
ONE = Size.of(1)


def tensor_type(value: Value) -> TensorType:
    """The type of a tensor value."""
    assert isinstance(value.type, TensorType)
    return value.type


def arithmetic_dtype(dtype: DType) -> DType:
    """In which dtype torch computes on elements of ``dtype``."""
    return F32 if dtype.is_float and dtype.bits == 16 else dtype


@dataclass(frozen=True)
class LookUp:
    """Integers that an operation takes as positions of a dimension of ``size``, and that may lie
    outside. ``from_end``: negative ones count from its end; ``passed_over``: a number that is
    none of them."""

    ids: Value
    size: Size
    from_end: bool
    passed_over: int | None


class Emitter:
    """Appends operations for one region; ``shape`` and ``dtype`` describe the current result.
    ``looked_up``: what has to be looked at before a kernel runs (positions.py)."""

    def __init__(self, loc: Location = NOWHERE) -> None:
        self.builder = Builder(loc)
        self.letters: dict[Value, str] = {}
        self.looked_up: list[LookUp] = []
        self.shape: Shape = ()
        self.dtype: DType = F32

    def op(self, cls: type[Op], *operands: Value, hint: str = "", **attrs: Attr) -> Value:
        """One operation with one result, which is called ``hint`` in print (or like the op)."""
        return self.builder(cls, *operands, hint=hint or cls.name.partition(".")[2], **attrs)

    def const(self, value: float | bool, dtype: DType) -> Value:
        """A constant, rank 0."""
        return self.op(m.Const, value=value, type=TensorType((), dtype))

    def count(self, sizes: Iterable[Size], dtype: DType) -> Value:
        """The product of sizes as a number of ``dtype``."""
        size = product(sizes)
        if size.constant is not None:
            return self.const(size.constant, dtype)
        return self.cast(self.op(m.SizeValue, size=size, type=TensorType((), I64)), dtype)

    def cast(self, x: Value, dtype: DType, asked: bool = False) -> Value:
        same = tensor_type(x).dtype == dtype
        return x if same else self.op(m.Cast, x, dtype=dtype, asked=asked)

    def reshape(self, x: Value, shape: Sequence[Size]) -> Value:
        same = tensor_type(x).shape == tuple(shape)
        return x if same else self.op(t.Reshape, x, shape=tuple(shape))

    def transpose(self, x: Value, permutation: Sequence[int]) -> Value:
        same = list(permutation) == list(range(len(permutation)))
        return x if same else self.op(t.Transpose, x, permutation=tuple(permutation))

    def broadcast(self, x: Value, shape: Sequence[Size]) -> Value:
        same = tensor_type(x).shape == tuple(shape)
        return x if same else self.op(t.Broadcast, x, shape=tuple(shape))

    def iota(self, shape: Sequence[Size], axis: int, dtype: DType = I64) -> Value:
        """Positions along ``axis``; the other sizes are kept as given (1 broadcasts)."""
        return self.op(t.Iota, axis=axis, type=TensorType(tuple(shape), dtype))

    def compute(self, cls: type[Op], *operands: Value, dtype: DType) -> Value:
        """A pointwise op on operands cast to ``dtype`` (16 bits: in f32, rounded back)."""
        wide = arithmetic_dtype(dtype)
        result = self.op(cls, *(self.cast(x, wide) for x in operands))
        return self.cast(result, dtype)

    def select(self, condition: Value, lhs: Value, rhs: Value, dtype: DType) -> Value:
        """Where ``condition`` (bool) holds ``lhs``, else ``rhs``; of booleans by logic."""
        if dtype == BOOL:
            inside = self.op(m.And, condition, lhs)
            outside = self.op(m.And, self.op(m.Not, condition), rhs)
            return self.op(m.Or, inside, outside)
        wide = arithmetic_dtype(dtype)
        result = self.op(m.Select, condition, self.cast(lhs, wide), self.cast(rhs, wide))
        return self.cast(result, dtype)

    def compare(self, lhs: Value, rhs: Value, relation: str) -> Value:
        """A comparison of two values of one dtype."""
        wide = arithmetic_dtype(tensor_type(lhs).dtype)
        return self.op(m.Compare, self.cast(lhs, wide), self.cast(rhs, wide), relation=relation)

    def contract(self, equation: str, lhs: Value, rhs: Value, dtype: DType | None = None) -> Value:
        """A contraction in f32 (f64 if ``dtype`` is that) of operands first rounded to ``dtype``.

        A letter may have size 1 on one side (torch broadcasts): the dimension is dropped there.
        The result is rounded to ``dtype``, or left in the wide dtype if that is None.
        """
        given = dtype or tensor_type(lhs).dtype
        if not given.is_float:
            raise UnsupportedError("contractions of integers stay with torch; convert to float")
        sides, out = equation.split("->")
        left, right = sides.split(",")
        wide = arithmetic_dtype(given)
        lhs, rhs = (self.cast(self.cast(x, given), wide) for x in (lhs, rhs))
        lhs, left_kept = self._drop_broadcast(lhs, left, rhs, right)
        rhs, right = self._drop_broadcast(rhs, right, lhs, left_kept)
        value = self.op(t.Contract, lhs, rhs, equation=f"{left_kept},{right}->{out}")
        result = value if dtype is None else self.cast(value, dtype)
        self.letters[result] = out
        return result

    def _drop_broadcast(
        self, x: Value, letters: str, other: Value, other_letters: str
    ) -> tuple[Value, str]:
        sizes = dict(zip(other_letters, tensor_type(other).shape, strict=True))
        pairs = list(zip(letters, tensor_type(x).shape, strict=True))
        kept = [(c, s) for c, s in pairs if not (s == ONE and sizes.get(c, ONE) != ONE)]
        if len(kept) == len(pairs):
            return x, letters
        return self.reshape(x, [s for _, s in kept]), "".join(c for c, _ in kept)

    def reduce(self, x: Value, kind: str, axes: Sequence[int], keep: bool) -> Value:
        """Reductions over several axes, the last first so that the others keep their numbers."""
        rank = len(tensor_type(x).shape)
        for axis in sorted({a % rank for a in axes}, reverse=True):
            x = self.op(t.Reduce, x, kind=kind, axis=axis, keep=keep)
        return x

    def mean(self, x: Value, axes: Sequence[int], keep: bool) -> Value:
        """The mean over several axes, in the dtype of ``x``."""
        kind = tensor_type(x)
        count = self.count((kind.shape[a] for a in axes), kind.dtype)
        return self.op(m.Div, self.reduce(x, "sum", axes, keep), count)
