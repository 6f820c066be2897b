"""Which positions of the inner axis some rows need, as run-time values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tilewright.ir.core import Value
from tilewright.ir.ops_tile import BlockId
from tilewright.ir.sizes import Size
from tilewright.passes.to_tile.in_parts import parts_name
from tilewright.passes.to_tile.intervals import Interval
from tilewright.passes.to_tile.mask_range import Bound, MaskRange
from tilewright.passes.to_tile.state import LoweringState

Span = tuple[Value, Value, Value, Value]  # first and last position, first and last unmasked


class BlockLike(Protocol):
    """What products need to know of a block."""

    first: Value
    count: Value
    limit: Value
    masked: bool


@dataclass(frozen=True)
class Rows:
    """Some of a work item's rows: the first, counted from the first of all, and how many."""

    first: Value
    count: int

    @classmethod
    def all(cls, state: LoweringState) -> Rows:
        """The rows of the whole work item."""
        assert state.first_row is not None
        return cls(state.first_row, state.schedule.rows)


class BlockRange:
    """Turns the bounds of masks into positions for the rows at hand."""

    def __init__(self, state: LoweringState, mask: MaskRange, rows: Rows) -> None:
        self.state, self.mask, self.rows = state, mask, rows
        self.info, self.schedule, self.build = state.info, state.schedule, state.build

    def find(self, total: Value) -> Span:
        """First and last positions that contribute, and those between which no mask applies."""
        b = self.build
        zero = b.index(0)
        first, last, full_first, full_last = zero, total, zero, total
        for bound in self.mask.bounds:
            low, high = self._extremes(bound)
            if bound.upper:
                last = b.minimum(last, b.maximum(b.add(high, 1), 0))
                full_last = b.minimum(full_last, b.maximum(b.add(low, 1), 0))
            else:
                first = b.maximum(first, low)
                full_first = b.maximum(full_first, high)
        first = b.minimum(first, last)
        return first, last, full_first, b.minimum(full_last, last)

    def part(self, span: Span) -> Span:
        """What of a span this work item does where items share out the inner axis."""
        b = self.build
        item = b(BlockId, dim=len(self.info.grid), hint="part")
        start = b.mul(item, self.schedule.inner_part)
        end = b.add(start, self.schedule.inner_part)
        first, last, full_first, full_last = span
        return (
            b.maximum(first, start),
            b.minimum(last, end),
            b.maximum(full_first, start),
            b.minimum(full_last, end),
        )

    def shared(self, span: Span) -> Span:
        """What of a span this work item does where items take parts that are joined afterwards:
        whole blocks, as many for each."""
        b, (first, last, full_first, full_last) = self.build, span
        part, block = self.state.part, self.schedule.inner_block
        assert part is not None
        blocks = b.div(b.add(b.sub(last, first), block - 1), block)
        count = b.size(Size.of(parts_name(self.info.graph)))
        each = b.mul(b.div(b.add(blocks, b.sub(count, 1)), count), block)
        start = b.minimum(b.add(first, b.mul(part, each)), last)
        end = b.minimum(b.add(start, each), last)
        return start, end, b.maximum(full_first, start), b.minimum(full_last, end)

    def box(self) -> dict[str, Interval]:
        """The positions of the rows, and of the work item on the grid."""
        box = {name: Interval.of(at) for name, at in self.state.grid_at.items()}
        for axis in self.info.rows:
            box[axis.name] = Interval(*self._axis_range(axis.name))
        return box

    def _extremes(self, bound: Bound) -> tuple[Value, Value]:
        """The smallest and largest value of a bound over the rows."""
        b = self.build
        low = high = b.size(bound.constant)
        for name, factor in bound.terms:
            least, most = self._axis_range(name)
            if factor < 0:
                least, most = most, least
            low = b.add(low, b.mul(least, factor))
            high = b.add(high, b.mul(most, factor))
        return low, high

    def _axis_range(self, name: str) -> tuple[Value, Value]:
        """Least and greatest position on a row axis within these rows."""
        b, state = self.build, self.state
        if name in state.grid_at:
            return state.grid_at[name], state.grid_at[name]
        assert state.row_total is not None
        past = b.sub(state.row_total, 1)
        final = b.minimum(b.add(self.rows.first, self.rows.count - 1), past)
        low = state.split_position(b.minimum(self.rows.first, past), self.info.rows)
        high = state.split_position(final, self.info.rows)
        names = [a.name for a in self.info.rows]
        if names[0] == name:
            return low[name], high[name]
        # rows that cross to the next position of an outer axis start again at 0
        size = b.size(self.info.rows[names.index(name)].size)
        crossed = b.index(0)
        for outer in names[: names.index(name)]:
            crossed = b.add(crossed, b.sub(high[outer], low[outer]))
        same = b.maximum(b.sub(b.index(1), crossed), 0)
        differs = b.sub(b.index(1), same)
        least = b.mul(low[name], same)
        most = b.add(b.mul(high[name], same), b.mul(b.sub(size, 1), differs))
        return least, most
