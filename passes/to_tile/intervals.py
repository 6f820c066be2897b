"""Integer expressions over boxes of positions, as run-time index arithmetic.

``m - n <= w`` for n in [n0, n1] and m in [m0, m1] is certain if m1 - n0 <= w and possible if
m0 - n1 <= w. A condition is an integer from 0 to 1, so that an interval [1, 1] means that it holds
everywhere in the box, [0, 0] nowhere. A box of one position gives the expression's value itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.mask_range import is_countable
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.tables import STRIDE

_FAR = 1 << 31  # added, in multiples of the divisor, so that a dividend is not negative


@dataclass(frozen=True)
class Interval:
    """low <= x <= high, run-time integers; one and the same value if x is known exactly."""

    low: Value
    high: Value

    @classmethod
    def of(cls, value: Value) -> Interval:
        return cls(value, value)

    @property
    def exact(self) -> bool:
        return self.low is self.high


Box = Mapping[str, Interval]  # positions on axes
Rule = Callable[["Intervals", Any, list[Interval]], Interval | None]
RULES: dict[type[Op], Rule] = {}


def rule(*classes: type[Op]) -> Callable[[Rule], Rule]:
    """Registers the interval form of pointwise ops."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


class Intervals:
    """Builds the interval of integer streams over a box; None where nothing is known."""

    def __init__(self, state: LoweringState) -> None:
        self.state, self.info = state, state.info
        self.build: TileBuilder = state.build
        self.coarse = False  # ranges of memory may be answered for somewhat more than asked

    def of(
        self, value: Value, box: Box, memo: dict[Value, Interval | None] | None = None
    ) -> Interval | None:
        """The interval of ``value`` over ``box``; ``memo`` keeps those found before."""
        memo = {} if memo is None else memo
        if value not in memo:
            memo[value] = self._find(value, box, memo)
        return memo[value]

    def value(self, value: Value, at: Mapping[str, Value]) -> Value | None:
        """``value`` at one position."""
        found = self.of(value, {name: Interval.of(x) for name, x in at.items()})
        return found.low if found is not None and found.exact else None

    def _find(self, value: Value, box: Box, memo: dict[Value, Interval | None]) -> Interval | None:
        op, b = self.info.made.get(value), self.build
        if isinstance(op, m.Const):
            whole = float(op.value).is_integer() and abs(op.value) < 1 << 62
            return Interval.of(b.index(int(op.value))) if whole and is_countable(value) else None
        if isinstance(op, m.SizeValue):
            return Interval.of(b.size(op.size))
        if isinstance(op, s.Index):
            return box.get(op.axis)
        if isinstance(op, s.Source | s.Gather):
            return self._memory(op, box, memo)
        if isinstance(op, s.Repeat):
            return self.of(op.x, box, memo)
        found = RULES.get(type(op)) if op is not None else None
        if found is None or op is None or not all(is_countable(v) for v in (*op.operands, value)):
            return None
        inputs = [self.of(v, box, memo) for v in op.operands]
        known = [x for x in inputs if x is not None]
        return found(self, op, known) if len(known) == len(inputs) else None

    # ---- integers in memory

    def _memory(
        self, op: s.Source | s.Gather, box: Box, memo: dict[Value, Interval | None]
    ) -> Interval | None:
        if not is_countable(op.result) or self.info.element(op.result):
            return None
        if isinstance(op, s.Gather):
            indices = [self.of(v, box, memo) for v in op.indices]
        else:
            indices = [self._dimension(op, dim, box) for dim in op.dims]
        known = [self.inside(op, at, x) for at, x in enumerate(indices) if x is not None]
        if len(known) < len(indices) or not all(x.exact for x in known[:-1]):
            return None
        buffer = self.state.buffers[op.tensor]
        if all(x.exact for x in known):
            return Interval.of(self.build(t.Read, buffer, *(x.low for x in known), hint="read"))
        before, last = [x.low for x in known[:-1]], known[-1]
        if self.coarse and op.tensor in self.state.tables:
            b, (low, high) = self.build, self.state.tables[op.tensor]
            first, end = b.div(last.low, STRIDE), b.div(last.high, STRIDE)
            return self._entries(op, (low, high), before, Interval(first, end), box)
        return self._range(buffer, before, last, buffer)

    def _entries(
        self,
        op: s.Source | s.Gather,
        tables: tuple[Value, Value],
        before: list[Value],
        index: Interval,
        box: Box,
    ) -> Interval | None:
        """The least and greatest of what entries of an operation's tables stand for, over a box."""
        return self._range(tables[0], before, index, tables[1])

    def _dimension(self, op: s.Source, dim: tuple[str, ...], box: Box) -> Interval | None:
        """The position on a dimension that one axis makes up (none: it has one element)."""
        if not dim:
            return Interval.of(self.build.index(0))
        return box.get(dim[0]) if len(dim) == 1 else None

    def inside(self, op: s.Source | s.Gather, at: int, index: Interval) -> Interval:
        """An index moved inside its dimension (positions of blocks may lie past the end)."""
        assert isinstance(op.tensor.type, TensorType)
        b = self.build
        last = b.sub(b.size(op.tensor.type.shape[at]), 1)
        return self.monotone(lambda x: b.maximum(b.minimum(x, last), 0), index)

    def _range(
        self, minima: Value, before: list[Value], index: Interval, maxima: Value
    ) -> Interval | None:
        """The least and greatest of a stretch of memory."""
        b = self.build
        start = [b(t.Read, x, *before, index.low, hint="read") for x in (minima, maxima)]
        end = b.add(index.high, 1)
        with b.loop(b.add(index.low, 1), end, 1, start, hint="entry") as loop:
            low = b(t.Read, minima, *before, loop.counter, hint="read")
            high = b(t.Read, maxima, *before, loop.counter, hint="read")
            least, most = loop.carried
            loop.next = (b.minimum(least, low), b.maximum(most, high))
        return Interval(*loop.results)

    # ---- arithmetic

    def monotone(self, function: Callable[..., Value], *x: Interval) -> Interval:
        """A function that falls with none of its operands, of both ends."""
        low = function(*(part.low for part in x))
        if all(part.exact for part in x):
            return Interval.of(low)
        return Interval(low, function(*(part.high for part in x)))

    def less(self, a: Value, b: Value | int) -> Value:
        """1 if a < b, else 0."""
        build = self.build
        return build(t.Less, a, build.index(b) if isinstance(b, int) else b, hint="less")

    def floor(self, a: Value, b: Value) -> Value:
        """a / b rounded down, b positive."""
        build = self.build
        far = build.mul(b, _FAR)
        return build.sub(build.div(build.add(a, far), b), _FAR)

    def opposite(self, x: Value) -> Value:
        """Not x, of a condition."""
        return self.build.sub(self.build.index(1), x)

    def positive(self, value: Value) -> bool:
        """True for a divisor that cannot be zero or negative."""
        op = self.info.made.get(value)
        while isinstance(op, s.Repeat):
            op = self.info.made.get(op.x)
        if isinstance(op, m.Const):
            return op.value > 0
        return isinstance(op, m.SizeValue) and all(c > 0 for _, c in op.size.terms)


@rule(m.Add)
def _add(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    return i.monotone(i.build.add, *x)


@rule(m.Sub)
def _sub(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    low = i.build.sub(x[0].low, x[1].high)
    exact = x[0].exact and x[1].exact
    return Interval.of(low) if exact else Interval(low, i.build.sub(x[0].high, x[1].low))


@rule(m.Mul)
def _mul(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    b = i.build
    if x[0].exact and x[1].exact:
        return Interval.of(b.mul(x[0].low, x[1].low))
    ends = [b.mul(p, q) for p in (x[0].low, x[0].high) for q in (x[1].low, x[1].high)]
    low = high = ends[0]
    for end in ends[1:]:
        low, high = b.minimum(low, end), b.maximum(high, end)
    return Interval(low, high)


@rule(m.Div)
def _div(i: Intervals, op: Any, x: list[Interval]) -> Interval | None:
    if not (x[1].exact and i.positive(op.rhs)):
        return None
    return i.monotone(lambda a: i.floor(a, x[1].low), x[0])


@rule(m.Mod)
def _mod(i: Intervals, op: Any, x: list[Interval]) -> Interval | None:
    """Within one multiple of the divisor the remainder grows with the dividend."""
    if not (x[1].exact and i.positive(op.rhs)):
        return None
    b, divisor = i.build, x[1].low
    start = b.mul(i.floor(x[0].low, divisor), divisor)
    low = b.sub(x[0].low, start)
    if x[0].exact:
        return Interval.of(low)
    high = b.sub(x[0].high, start)
    apart = i.less(b.sub(divisor, 1), high)  # the stretch reaches the next multiple
    most = b.sub(divisor, 1)
    return Interval(b.mul(low, i.opposite(apart)), b.minimum(high, most))


@rule(m.Min, m.And)
def _min(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    return i.monotone(i.build.minimum, *x)


@rule(m.Max, m.Or)
def _max(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    return i.monotone(i.build.maximum, *x)


@rule(m.Not)
def _not(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    low = i.opposite(x[0].high)
    return Interval.of(low) if x[0].exact else Interval(low, i.opposite(x[0].low))


@rule(m.Neg)
def _neg(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    low = i.build.sub(i.build.index(0), x[0].high)
    return (
        Interval.of(low) if x[0].exact else Interval(low, i.build.sub(i.build.index(0), x[0].low))
    )


@rule(m.Abs)
def _abs(i: Intervals, op: Op, x: list[Interval]) -> Interval:
    b = i.build
    below = b.sub(b.index(0), x[0].low)
    if x[0].exact:
        return Interval.of(b.maximum(x[0].low, below))
    low = b.maximum(b.maximum(x[0].low, b.sub(b.index(0), x[0].high)), 0)
    return Interval(low, b.maximum(x[0].high, below))


@rule(m.Compare)
def _compare(i: Intervals, op: m.Compare, x: list[Interval]) -> Interval:
    left, right, relation = x[0], x[1], op.relation
    if relation in ("gt", "ge"):
        left, right, relation = right, left, {"gt": "lt", "ge": "le"}[relation]
    if relation in ("lt", "le"):
        return _below(i, left, right, strict=relation == "lt")
    ahead, behind = _below(i, left, right, strict=False), _below(i, right, left, strict=False)
    low = i.build.minimum(ahead.low, behind.low)
    exact = ahead.exact and behind.exact
    high = low if exact else i.build.minimum(ahead.high, behind.high)
    if relation == "eq":
        return Interval(low, high)
    certain = i.opposite(high)
    return Interval(certain, certain if exact else i.opposite(low))


def _below(i: Intervals, left: Interval, right: Interval, strict: bool) -> Interval:
    """left < right (<= if not strict)."""
    exact = left.exact and right.exact
    if strict:
        low, high = i.less(left.high, right.low), i.less(left.low, right.high)
    else:
        low, high = (
            i.opposite(i.less(right.low, left.high)),
            i.opposite(i.less(right.high, left.low)),
        )
    return Interval.of(low) if exact else Interval(low, high)


@rule(m.Select)
def _select(i: Intervals, op: m.Select, x: list[Interval]) -> Interval:
    """One side where the condition is decided, both together elsewhere."""
    condition, yes, no = x
    b = i.build
    if all(part.exact for part in x):
        return Interval.of(b.add(no.low, b.mul(condition.low, b.sub(yes.low, no.low))))
    least, most = b.minimum(yes.low, no.low), b.maximum(yes.high, no.high)

    def chosen(either: Value, one: Value, other: Value) -> Value:
        possible = b.mul(condition.high, b.sub(either, other))
        certain = b.mul(condition.low, b.sub(one, either))
        return b.add(b.add(other, possible), certain)

    return Interval(chosen(least, yes.low, no.low), chosen(most, yes.high, no.high))


@rule(m.Cast)
def _cast(i: Intervals, op: m.Cast, x: list[Interval]) -> Interval | None:
    """Integers keep their value if the new dtype is wide."""
    return x[0] if op.dtype.is_int and op.dtype.bits >= 32 else None
