"""Blocks under masks that no bound describes: each block is skipped, taken whole, or masked.

What a mask can be over a block of rows and positions is found from intervals, by a few integer
instructions, never by looking at its elements. Stretches of many blocks are looked at first, so
that what is far from everything visible costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.core import Value
from tilewright.passes.to_tile.block_range import BlockRange, Span
from tilewright.passes.to_tile.intervals import Box, Interval, Intervals
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.state import LoweringState

STRETCH = 16  # blocks looked at together

Make = Callable[[Value, Value, Value, bool], None]  # first, count, limit, masked


class BlockTests:
    """The loop over blocks with a look at each."""

    def __init__(self, state: LoweringState, mask: MaskRange, span: BlockRange) -> None:
        self.state, self.mask = state, mask
        self.build, self.info, self.schedule = state.build, state.info, state.schedule
        self.intervals = Intervals(state)
        self.box: Box = span.rows_box()
        self.memo: dict[Value, Interval | None] = {}
        for test in mask.tests:
            self._prepare(test)

    def _prepare(self, value: Value) -> None:
        """What does not depend on the inner axis, before the loop."""
        if not self.info.varies(value):
            self.intervals.of(value, self.box, self.memo)
            return
        op = self.info.made.get(value)
        for operand in op.operands if op is not None else ():
            if operand in self.info.made:
                self._prepare(operand)

    def run(self, span: Span, make: Make) -> None:
        """``make`` builds a block's body, once for whole blocks and once for masked ones."""
        b, size = self.build, self.schedule.inner_block
        first, last, full_first, full_last = span
        with b.loop(first, last, STRETCH * size, hint="stretch") as stretch:
            end = b.minimum(b.add(stretch.counter, STRETCH * size), last)
            seen = self._possible(stretch.counter, end)
            with (
                b.when_less(b.index(0), seen.high),
                b.loop(stretch.counter, end, size, hint="block") as loop,
            ):
                start = loop.counter
                stop = b.minimum(b.add(start, size), last)
                count = b.sub(stop, start)
                seen = self._possible(start, stop)
                if self.schedule.lanes == 1:
                    with b.when_less(b.index(0), seen.high):
                        make(start, count, stop, True)
                    return
                inside = self.intervals.less(full_last, stop)  # beyond the unmasked stretch
                before = self.intervals.less(start, full_first)
                short = self.intervals.less(count, size)
                partial = b.maximum(b.maximum(inside, before), short)
                partial = b.maximum(partial, self.intervals.opposite(seen.low))
                with b.when_less(partial, seen.high):
                    make(start, b.index(size), stop, False)
                with b.when_less(b.index(0), b.minimum(partial, seen.high)):
                    make(start, count, stop, True)

    def _possible(self, start: Value, stop: Value) -> Interval:
        """Whether all tests hold somewhere (high) and everywhere (low) from start to stop."""
        b = self.build
        name = self.info.inner.name
        box = {**self.box, name: Interval(start, b.sub(stop, 1))}
        memo = dict(self.memo)
        low, high = b.index(1), b.index(1)
        for test in self.mask.tests:
            found = self.intervals.of(test, box, memo)
            low = b.minimum(low, found.low) if found is not None else b.index(0)
            high = b.minimum(high, found.high) if found is not None else high
        return Interval(low, high)
