"""Loops over blocks of positions with running statistics in registers.

Bounds of masks leave one stretch that no mask touches, between two that masks cut; tests of masks
narrow it further (``seen.py``). What lies outside is never walked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.core import Value
from tilewright.passes.to_tile.block_range import BlockRange, Rows, Span
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.seen import SeenBlocks

Carried = tuple[Value, ...]
Body = Callable[[Value, Value | None, Carried], Carried]  # first position, end if cut, statistics


class BlockLoops:
    """Builds the loops of one work item; ``body`` builds a block of whole positions (no end), or
    one that masks or an end may cut."""

    def __init__(self, state: LoweringState, mask: MaskRange) -> None:
        self.state, self.mask, self.build = state, mask, state.build

    def run(self, body: Body, start: Sequence[Value]) -> Carried:
        """All blocks; the last statistics."""
        b, size = self.build, self.state.schedule.inner_block
        first, last, whole, past = self._span()
        carried = tuple(start)
        if self.mask.tests or any(not bound.upper for bound in self.mask.bounds):
            carried = self._loop(first, whole, True, body, carried, "before")
        blocks = b.div(b.maximum(b.sub(past, whole), 0), size)
        past = b.add(whole, b.mul(blocks, size))
        carried = self._loop(whole, past, False, body, carried, self._hint)
        return self._loop(past, last, True, body, carried, "after")

    @property
    def _hint(self) -> str:
        return f"{self.state.info.inner.name}_at"

    def _span(self) -> Span:
        """Where visible positions begin and end, and where those that are seen as a whole do."""
        b, info = self.build, self.state.info
        window = BlockRange(self.state, self.mask, Rows.all(self.state))
        span = window.find(b.size(info.inner.size))
        if info.splits:
            span = window.part(span)
        if self.mask.tests:
            span = SeenBlocks(self.state, self.mask, window).narrowed(span)
        first, last, whole, past = span
        whole = b.minimum(b.maximum(whole, first), last)
        return first, last, whole, past

    def _loop(
        self, low: Value, high: Value, cut: bool, body: Body, carried: Carried, hint: str
    ) -> Carried:
        b = self.build
        with b.loop(low, high, self.state.schedule.inner_block, carried, hint) as loop:
            loop.next = body(loop.counter, high if cut else None, loop.carried)
        return loop.results
