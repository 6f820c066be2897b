"""Loops over blocks of positions with running statistics in registers.

Bounds of masks leave one stretch that no mask touches, between two that masks cut; numbers of rows
(``row_bounds.py``) and tests of masks (``seen.py``) narrow it further. What lies outside is never
walked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.sizes import Size
from tilewright.passes.to_tile.block_range import BlockRange, Rows, Span
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.whole_blocks.codes import cached
from tilewright.passes.to_tile.whole_blocks.row_bounds import RowBounds, row_bound
from tilewright.passes.to_tile.whole_blocks.seen import SeenBlocks
from tilewright.passes.to_tile.whole_blocks.values import Values

Carried = tuple[Value, ...]
Body = Callable[[Value, Value | None, Carried], Carried]  # first position, end if cut, statistics


class BlockLoops:
    """Builds the loops of one work item; ``body`` builds a block of whole positions (no end), or
    one that masks or an end may cut."""

    def __init__(
        self,
        values: Values,
        mask: MaskRange,
        parts: Size | None = None,
        known: Span | None = None,
    ) -> None:
        """``parts``: how many work items share out what is visible (parts.py); ``known``: what
        ``span`` would find (spans.py)."""
        self.values, self.state, self.build = values, values.state, values.build
        self.mask, self.parts, self.known = mask, parts, known

    def run(self, body: Body, start: Sequence[Value]) -> Carried:
        """All blocks, those that nothing cuts first; the last statistics."""
        b, size = self.build, self.state.schedule.inner_block
        first, last, whole, past = self.known or self.span()
        blocks = b.div(b.maximum(b.sub(past, whole), 0), size)
        past = b.add(whole, b.mul(blocks, size))
        with b.loop(whole, past, size, tuple(start), self._hint) as loop:
            loop.next = body(self._whole(loop.counter), None, loop.carried)
        carried = loop.results
        if self.mask.tests or any(not bound.upper for bound in self.mask.bounds):
            return self._both_sides((first, last, whole, past), body, carried)
        with b.loop(past, last, size, carried, "after") as loop:
            loop.next = body(loop.counter, last, loop.carried)
        return loop.results

    def _whole(self, first: Value) -> Value:
        """Where a block begins that nothing cuts: of codes a multiple of its size (``_aligned``),
        which is said where threads then read several scales at once."""
        b, size = self.build, self.state.schedule.inner_block
        return b.mul(b.div(first, size), size) if self.values.one_warp else first

    def _both_sides(self, span: Span, body: Body, carried: Carried) -> Carried:
        """The blocks before and after those that nothing cuts, in one loop: each loop that begins
        waits for memory once."""
        b, size = self.build, self.state.schedule.inner_block
        first, last, whole, past = span
        before = b.div(b.add(b.sub(whole, first), size - 1), size)
        after = b.div(b.maximum(b.add(b.sub(last, past), size - 1), 0), size)
        skipped = b.sub(b.sub(past, first), b.mul(before, size))
        with b.loop(b.index(0), b.add(before, after), 1, carried, "side") as loop:
            late = b.sub(b.index(1), b(t.Less, loop.counter, before, hint="early"))
            at = b.add(b.add(first, b.mul(loop.counter, size)), b.mul(late, skipped))
            end = b.add(whole, b.mul(late, b.sub(last, whole)))
            loop.next = body(at, end, loop.carried)
        return loop.results

    @property
    def _hint(self) -> str:
        return f"{self.state.info.inner.name}_at"

    def span(self) -> Span:
        """Where visible positions begin and end, and where those that are seen as a whole do."""
        b, info = self.build, self.state.info
        window = BlockRange(self.state, self.mask, Rows.all(self.state))
        span = window.find(b.size(info.inner.size))
        if info.splits:
            span = window.part(span)
        span, tests = self._bounded(span, window)
        if tests:
            mask = replace(self.mask, tests=tests)
            span = SeenBlocks(self.state, mask, window).narrowed(span)
        if cached(self.state):
            span = self._aligned(span)
        if self.parts is not None:
            span = self._part(span, self.parts)
        first, last, whole, past = span
        whole = b.minimum(b.maximum(whole, first), last)
        return first, last, whole, past

    def _bounded(self, span: Span, window: BlockRange) -> tuple[Span, list[Value]]:
        """A span within those tests that bound a row's positions, and the other tests."""
        bounds, rest = RowBounds(self.values, window), []
        for test in self.mask.tests:
            bound = row_bound(self.state.info, test)
            narrower = bounds.narrowed(span, bound) if bound is not None else None
            span = span if narrower is None else narrower
            rest += [test] if narrower is None else []
        return span, rest

    def _aligned(self, span: Span) -> Span:
        """A span whose blocks start at multiples of their size, as codes are packed: masks hide
        what comes before it."""
        b, size = self.build, self.state.schedule.inner_block
        first, last, whole, past = span
        whole = b.mul(b.div(b.add(b.maximum(whole, first), size - 1), size), size)
        return b.mul(b.div(first, size), size), last, whole, past

    def _part(self, span: Span, parts: Size) -> Span:
        """One of so many parts of a span, each of whole blocks but for the last."""
        b, size = self.build, self.state.schedule.inner_block
        first, last, whole, past = span
        item = b(t.BlockId, dim=len(self.state.info.grid), hint="part")
        count = b.size(parts)
        blocks = b.div(b.add(b.sub(last, first), size - 1), size)
        share = b.mul(b.div(b.add(blocks, b.sub(count, 1)), count), size)
        start = b.minimum(b.add(first, b.mul(item, share)), last)
        end = b.minimum(b.add(start, share), last)
        return start, end, whole, b.minimum(past, end)
