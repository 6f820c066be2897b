"""Which blocks of the inner axis a work item computes, and how: whole, masked, or not at all.

Masks that are bounds on positions leave one stretch that no mask touches, between two that masks
cut. Of other masks intervals say, by a few integer instructions and never by looking at elements,
what a stretch of positions can see; what is far from everything visible is passed over in strides
of many blocks, and a block that is cut is looked at more closely to find the part that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.core import Value
from tilewright.passes.to_tile.block_range import BlockRange, Rows, Span
from tilewright.passes.to_tile.intervals import Interval, Intervals
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.state import LoweringState

STRETCH = 16  # blocks looked at together
_NEVER = 1 << 60  # beyond every position


@dataclass(frozen=True)
class Bodies:
    """What builds a block: ``whole(first, count)`` without masks, for a multiple of ``unit``
    positions, and ``cut(first, count, limit)``, which masks."""

    whole: Callable[[Value, Value], None]
    cut: Callable[[Value, Value, Value], None]


class BlockWalk:
    """Builds the loops over blocks of one kernel. Each body is built once."""

    def __init__(self, state: LoweringState, mask: MaskRange) -> None:
        self.state, self.mask = state, mask
        self.build, self.info, self.schedule = state.build, state.info, state.schedule
        self.unit, self.align = state.unit, state.schedule.align

    def run(self, bodies: Bodies) -> None:
        """All blocks of the work item's rows."""
        b = self.build
        window = BlockRange(self.state, self.mask, Rows.all(self.state))
        span = window.find(b.size(self.info.inner.size))
        if self.info.splits:
            span = window.part(span)
        first = b.mul(b.div(span[0], self.align), self.align)  # the masks hide what comes before
        span = (first, *span[1:]) if self.align > 1 else span
        if self.state.shares:
            span = window.shared(span)
        if self.mask.tests:
            self._tested(span, MaskTests(self.state, self.mask, window), bodies)
        else:
            both = any(not bound.upper for bound in self.mask.bounds)
            self._parts(span, both, bodies)

    def _parts(self, span: Span, both: bool, bodies: Bodies) -> None:
        """What no mask touches, then what lies before (if ``both``) and after it."""
        b, size = self.build, self.schedule.inner_block
        first, last, start, end = span
        if self.schedule.lanes == 1:  # bounds cost next to nothing, a second form much
            with b.loop(first, last, size, hint="block") as loop:
                bodies.cut(loop.counter, b.minimum(b.sub(last, loop.counter), size), last)
            return
        start = b.maximum(start, first)
        if self.align > 1:
            start = b.mul(b.div(b.add(start, self.align - 1), self.align), self.align)
        start = b.minimum(start, last)
        units = b.div(b.maximum(b.sub(end, start), 0), self.unit)
        end = b.add(start, b.mul(units, self.unit))
        with b.loop(start, end, size, hint="block") as loop:
            bodies.whole(loop.counter, b.minimum(b.sub(end, loop.counter), size))
        if not both:
            self._cut(end, last, bodies)
            return
        with b.loop(b.index(0), b.index(2), 1, hint="side") as side:
            after = side.counter
            low = b.add(first, b.mul(after, b.sub(end, first)))
            high = b.add(start, b.mul(after, b.sub(last, start)))
            self._cut(low, high, bodies)

    def _cut(self, low: Value, high: Value, bodies: Bodies) -> None:
        b, size = self.build, self.schedule.inner_block
        with b.loop(low, high, size, hint="block") as loop:
            bodies.cut(loop.counter, b.minimum(b.sub(high, loop.counter), size), high)

    def _tested(self, span: Span, tests: MaskTests, bodies: Bodies) -> None:
        b, size = self.build, self.schedule.inner_block
        first, last, start, end = span
        with b.loop(first, last, STRETCH * size, hint="stretch") as stretch:
            stop = b.minimum(b.add(stretch.counter, STRETCH * size), last)
            seen = tests.over(stretch.counter, stop, coarse=True)
            with (
                b.when_less(b.index(0), seen.high),
                b.loop(stretch.counter, stop, size, hint="block") as loop,
            ):
                low, high = loop.counter, b.minimum(b.add(loop.counter, size), last)
                seen = tests.over(low, high, coarse=True)
                with b.when_less(b.index(0), seen.high):
                    inner = b.maximum(low, start), b.minimum(high, end)
                    found = self._closer((low, high, *inner), seen.low, tests)
                    self._parts(found, True, bodies)

    def _closer(self, span: Span, certain: Value, tests: MaskTests) -> Span:
        """The visible part of a block and the part of it that no mask touches, a unit at a time;
        nothing is looked at where the block is known to be visible as a whole."""
        b = self.build
        low, high, start, end = span
        if self.schedule.lanes == 1:
            return span
        hidden = b.sub(b.index(1), certain)
        far = b.mul(hidden, _NEVER)
        begin = [b.add(low, far), b.mul(high, certain), b.add(start, far), b.mul(end, certain)]
        stop = b.add(low, b.mul(hidden, b.sub(high, low)))
        with b.loop(low, stop, self.unit, begin, hint="unit") as loop:
            here = loop.counter
            after = b.minimum(b.add(here, self.unit), high)
            seen = tests.over(here, after)
            inside = b.minimum(tests.reaches(start, here), tests.reaches(after, end))
            full = b.minimum(
                b.minimum(seen.low, inside), tests.reaches(b.add(here, self.unit), after)
            )
            first, last, whole, past = loop.carried
            loop.next = (
                b.minimum(first, b.add(here, b.mul(tests.neither(seen.high), _NEVER))),
                b.maximum(last, b.mul(after, seen.high)),
                b.minimum(whole, b.add(here, b.mul(tests.neither(full), _NEVER))),
                b.maximum(past, b.mul(after, full)),
            )
        first, last, whole, past = loop.results
        first = b.minimum(first, last)
        whole = b.minimum(whole, last)
        # units seen as a whole may lie on both sides of one that is not
        extent = b.mul(hidden, b.maximum(b.sub(b.sub(past, whole), 1), 0))
        joined = tests.over(whole, b.add(b.add(whole, 1), extent))
        past = b.add(whole, b.mul(joined.low, b.maximum(b.sub(past, whole), 0)))
        return first, last, whole, past


class MaskTests:
    """Whether the tests of masks hold over stretches of positions, for a block of rows."""

    def __init__(self, state: LoweringState, mask: MaskRange, rows: BlockRange) -> None:
        self.build, self.info, self.mask = state.build, state.info, mask
        self.intervals = Intervals(state)
        self.box = rows.box()
        self.memo: dict[Value, Interval | None] = {}
        for test in mask.tests:
            self._prepare(test)

    def _prepare(self, value: Value) -> None:
        """What does not depend on the inner axis, once for all stretches."""
        if not self.info.varies(value):
            self.intervals.of(value, self.box, self.memo)
            return
        op = self.info.made.get(value)
        for operand in op.operands if op is not None else ():
            if operand in self.info.made:
                self._prepare(operand)

    def over(self, start: Value, stop: Value, coarse: bool = False) -> Interval:
        """1 as high: they hold somewhere from start to stop; as low: everywhere. ``coarse`` may
        answer for a little more than that."""
        b = self.build
        box = {**self.box, self.info.inner.name: Interval(start, b.sub(stop, 1))}
        memo = dict(self.memo)
        low, high = b.index(1), b.index(1)
        self.intervals.coarse = coarse
        for test in self.mask.tests:
            found = self.intervals.of(test, box, memo)
            low = b.minimum(low, found.low) if found is not None else b.index(0)
            high = b.minimum(high, found.high) if found is not None else high
        return Interval(low, high)

    def reaches(self, a: Value, b: Value) -> Value:
        """1 if a <= b."""
        return self.intervals.less(a, self.build.add(b, 1))

    def neither(self, x: Value) -> Value:
        return self.intervals.opposite(x)
