"""Positions that a region looks up by, and whether they are known to lie inside.

A kernel reads the nearest element for a position outside; torch raises. How integers were made
often tells that none is outside (a choice of k, an iota, a clamp, a remainder). All others are
looked at before the kernel runs (``frontend/looked_up.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tilewright.frontend.op_map.emitter import Emitter, LookUp, tensor_type
from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.sizes import Size

ZERO, ONE = Size(), Size.of(1)
_COUNTED = 32  # bits from which a dtype is taken to hold all sizes, and what is made of them


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number that integers may be; None: not known."""

    low: Size | None = None
    high: Size | None = None

    def is_inside(self, low: Size, high: Size) -> bool:
        """Whether all numbers are certainly in ``low`` … ``high``."""
        below = self.low is not None and self.low.at_least(low)
        return below and self.high is not None and high.at_least(self.high)

    @property
    def positive(self) -> bool:
        return self.low is not None and self.low.at_least(ONE)

    @property
    def natural(self) -> bool:
        return self.low is not None and self.low.at_least(ZERO)


def range_of(ops: Iterable[Op], value: Value) -> Range:
    """What is known of integers that operations make."""
    return _Ranges(ops).of(value)


def look_up(
    e: Emitter, ids: Value, size: Size, from_end: bool = False, passed_over: int | None = None
) -> None:
    """Says that an operation takes ``ids`` as positions of a dimension of ``size``, to be looked at
    before the kernel if they may be outside (``from_end``, ``passed_over``: see LookUp)."""
    low = ZERO - size if from_end else ZERO
    if not range_of(e.builder.ops, ids).is_inside(low, size - ONE):
        e.looked_up.append(LookUp(ids, size, from_end, passed_over))


class _Ranges:
    """Ranges of the values that operations make, each found once."""

    def __init__(self, ops: Iterable[Op]) -> None:
        self.made = {v: op for op in ops for v in op.results}
        self.known: dict[Value, Range] = {}

    def of(self, value: Value) -> Range:
        if value not in self.known:
            self.known[value] = self._held(value)
        return self.known[value]

    def _held(self, value: Value) -> Range:
        """What the operation says, or where numbers may have wrapped around, the dtype alone."""
        dtype = tensor_type(value).dtype
        held, op = _of_dtype(dtype), self.made.get(value)
        if op is None:
            return held
        found = self._result(op, value)
        ends = [end for end in (found.low, found.high) if end is not None]
        if not all(_is_held(end, dtype) for end in ends):
            return held
        return Range(found.low or held.low, found.high or held.high)

    def _result(self, op: Op, value: Value) -> Range:
        if isinstance(op, m.Const):
            number = op.value
            whole = isinstance(number, int) and tensor_type(value).dtype.is_int
            return Range(Size.of(int(number)), Size.of(int(number))) if whole else Range()
        if isinstance(op, m.SizeValue):
            return Range(op.size, op.size)
        if isinstance(op, t.Iota):
            return Range(ZERO, tensor_type(value).shape[op.axis] - ONE)
        if isinstance(op, r.TopK) and value is op.results[1]:
            return Range(ZERO, tensor_type(op.x).shape[-1] - ONE)
        if isinstance(op, r.SortOrder):
            return Range(ZERO, tensor_type(op.x).shape[op.axis] - ONE)
        if isinstance(op, r.SegmentCount):
            return Range(ZERO)
        if isinstance(op, _SAME) or (isinstance(op, t.Reduce) and op.kind in ("max", "min")):
            given = op.operands[0]
            return self.of(given) if not tensor_type(given).dtype.is_float else Range()
        if isinstance(op, t.Concat):
            return _union([self.of(part) for part in op.parts])
        if isinstance(op, m.Select):
            return _union([self.of(v) for v in op.operands[1:]])
        if isinstance(op, r.Scatter) and op.kind == "set":
            return _union([self.of(op.x), self.of(op.source)])
        rule = RULES.get(type(op))
        return Range() if rule is None else rule(*(self.of(v) for v in op.operands))


# what moves or repeats integers, or takes some of them
_SAME = m.Cast | t.Reshape | t.Transpose | t.Broadcast | t.Slice | t.Roll | t.Gather | r.TakeAlong


def _of_dtype(dtype: DType) -> Range:
    if dtype.kind == "bool":
        return Range(ZERO, ONE)
    if not dtype.is_int or dtype.bits >= _COUNTED:
        return Range()
    half = 0 if dtype.kind == "uint" else 1 << (dtype.bits - 1)
    return Range(Size.of(-half), Size.of((1 << dtype.bits) - 1 - half))


def _is_held(end: Size, dtype: DType) -> bool:
    """Whether the dtype has that number; what is no constant is made of sizes."""
    number, bits = end.constant, min(dtype.bits, _COUNTED)
    if number is None:
        return bits >= _COUNTED
    if dtype.kind == "bool":
        return number in (0, 1)
    return -1 << (bits - 1) <= number < 1 << (bits - (dtype.kind == "int"))


def _larger(a: Size | None, b: Size | None) -> Size | None:
    """The larger of two ends, None if that is not known."""
    if a is None or b is None:
        return None
    if a.at_least(b):
        return a
    return b if b.at_least(a) else None


def _smaller(a: Size | None, b: Size | None) -> Size | None:
    larger = _larger(a, b)
    return None if larger is None else (b if larger is a else a)


def _union(ranges: list[Range]) -> Range:
    low, high = ranges[0].low, ranges[0].high
    for other in ranges[1:]:
        low, high = _smaller(low, other.low), _larger(high, other.high)
    return Range(low, high)


def _maximum(a: Range, b: Range) -> Range:
    """Either's low end holds for the larger number."""
    return Range(_larger(a.low, b.low) or a.low or b.low, _larger(a.high, b.high))


def _minimum(a: Range, b: Range) -> Range:
    return Range(_smaller(a.low, b.low), _smaller(a.high, b.high) or a.high or b.high)


def _sum(a: Size | None, b: Size | None, sign: int = 1) -> Size | None:
    return None if a is None or b is None else a + b * sign


def _product(a: Range, b: Range) -> Range:
    """Of two that are not negative, or one of them a number."""
    for whole, factor in ((a, b), (b, a)):
        if factor.low is not None and factor.low == factor.high:
            ends = _times(whole.low, factor.low), _times(whole.high, factor.low)
            if factor.natural:
                return Range(*ends)
            return Range(*reversed(ends)) if (ZERO - factor.low).at_least(ZERO) else Range()
    if not (a.natural and b.natural):
        return Range()
    return Range(_times(a.low, b.low), _times(a.high, b.high))


def _times(a: Size | None, b: Size | None) -> Size | None:
    return None if a is None or b is None else a * b


def _quotient(a: Range, b: Range) -> Range:
    """Rounded down, by at least 1."""
    return Range(ZERO, _divided(a.high, b.low)) if a.natural and b.positive else Range()


def _divided(whole: Size | None, part: Size | None) -> Size | None:
    a = None if whole is None else whole.constant
    b = None if part is None else part.constant
    return whole if a is None or not b else Size.of(a // b)


def _remainder(a: Range, b: Range) -> Range:
    """With the sign of the divisor: nothing is known of one by 0."""
    if not b.positive or b.high is None or b.low is None:
        return Range()
    return a if a.is_inside(ZERO, b.low - ONE) else Range(ZERO, b.high - ONE)


def _magnitude(a: Range) -> Range:
    if a.natural:
        return a
    return Range(ZERO, _larger(a.high, None if a.low is None else ZERO - a.low))


# what is known of an operation's results, of what is known of its operands
RULES: dict[type[Op], Callable[..., Range]] = {
    m.Add: lambda a, b: Range(_sum(a.low, b.low), _sum(a.high, b.high)),
    m.Sub: lambda a, b: Range(_sum(a.low, b.high, -1), _sum(a.high, b.low, -1)),
    m.Neg: lambda a: Range(_sum(ZERO, a.high, -1), _sum(ZERO, a.low, -1)),
    m.Mul: _product,
    m.Div: _quotient,
    m.Mod: _remainder,
    m.Max: _maximum,
    m.Min: _minimum,
    m.Abs: _magnitude,
}
