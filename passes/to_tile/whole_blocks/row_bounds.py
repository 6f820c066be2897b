"""Bounds of masks that are known only when a work item runs: ``m < used[b]``, ``m >= first[n]``.

A comparison of the inner position with a number that stays the same along the inner axis bounds the
positions of a row. Of a block of rows it is the least and the greatest of their numbers that count:
the numbers are a tile that the mask needs anyway, and two reductions of it say what no row sees and
what all rows see. No block of positions is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.passes.to_tile.block_range import BlockRange, Span
from tilewright.passes.to_tile.intervals import Interval, Intervals
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.whole_blocks.values import Values

_FAR = float(1 << 60)  # beyond every position
Terms = list[tuple[int, Value]]  # signs and numbers of a sum


@dataclass(frozen=True)
class RowBound:
    """m < the sum of the terms (``upper``), or m >= it, plus a constant."""

    upper: bool
    terms: Terms
    constant: int


def row_bound(info: KernelInfo, test: Value) -> RowBound | None:
    """What a test says about the inner position m; None if it is no such comparison."""
    op = info.made.get(test)
    if not isinstance(op, m.Compare) or op.relation in ("eq", "ne"):
        return None
    lhs, rhs, relation = op.lhs, op.rhs, op.relation
    if info.varies(rhs):
        lhs, rhs = rhs, lhs
        relation = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}[relation]
    added = None if info.varies(rhs) else added_to_position(info, lhs)
    if added is None:
        return None
    terms = [(1, rhs), *((-sign, value) for sign, value in added)]
    return RowBound(relation in ("lt", "le"), terms, int(relation in ("le", "gt")))


def added_to_position(info: KernelInfo, value: Value) -> Terms | None:
    """What is added to the inner position, if that is all that varies."""
    op = info.made.get(value)
    if isinstance(op, s.Index):
        return [] if op.axis == info.inner.name else None
    if isinstance(op, s.Repeat):
        return added_to_position(info, op.x)
    if isinstance(op, m.Cast) and op.dtype.is_int and op.dtype.bits >= 32:
        return added_to_position(info, op.x)
    if isinstance(op, m.Add) and info.varies(op.lhs) != info.varies(op.rhs):
        one, other = (op.lhs, op.rhs) if info.varies(op.lhs) else (op.rhs, op.lhs)
        below = added_to_position(info, one)
        return None if below is None else [*below, (1, other)]
    if isinstance(op, m.Sub) and not info.varies(op.rhs):
        below = added_to_position(info, op.lhs)
        return None if below is None else [*below, (-1, op.rhs)]
    return None


class RowBounds:
    """Narrows what a work item walks by bounds that it computes."""

    def __init__(self, values: Values, window: BlockRange) -> None:
        self.values, self.state, self.build = values, values.state, values.build
        self.info = values.info
        self.intervals, self.box = Intervals(self.state), window.box()

    def narrowed(self, span: Span, bound: RowBound) -> Span | None:
        """A span within a bound; None if nothing is known of its numbers."""
        extremes = self._extremes(bound.terms)
        if extremes is None:
            return None
        b = self.build
        low, high = (b.maximum(b.add(x, bound.constant), 0) for x in extremes)
        first, last, whole, past = span
        if bound.upper:
            last, past = b.minimum(last, high), b.minimum(past, low)
        else:
            first, whole = b.maximum(first, low), b.maximum(whole, high)
        return b.minimum(first, last), last, whole, b.minimum(past, last)

    def _extremes(self, terms: Terms) -> tuple[Value, Value] | None:
        """The least and the greatest of a sum over the work item's rows."""
        if any(self.info.on_rows(value) for _, value in terms):
            return self._of_rows(terms)
        total: Value | None = None
        for sign, value in terms:
            found: Interval | None = self.intervals.of(value, self.box, {})
            if found is None or not found.exact:
                return None
            if total is None:  # the first is added, by construction
                total = found.low
            else:
                total = (self.build.add if sign > 0 else self.build.sub)(total, found.low)
        assert total is not None
        return total, total

    def _of_rows(self, terms: Terms) -> tuple[Value, Value]:
        b, frame, values = self.build, self.values.row_frame(), self.values
        total: Value | None = None
        for sign, value in terms:
            x = values.tile(value, frame)
            x = x if self.state.dtype(value) == I64 else b(m.Cast, x, dtype=I64, hint=value.hint)
            total = x if total is None else b(m.Add if sign > 0 else m.Sub, total, x, hint="bound")
        assert total is not None
        wide = values.memory.widened(total, frame.layout)
        found = []
        for kind, neutral in (("min", _FAR), ("max", -_FAR)):
            x = values.memory.masked(wide, frame.axes[0], frame, values.scope.place, neutral)
            x = b(t.Reduce, x, kind=kind, dim=0, hint=kind)
            found.append(b(t.Integer, x, hint=kind))
        return found[0], found[1]
