"""Which blocks of positions the tests of masks show, many blocks at a time.

The intervals of a test over a block are index arithmetic (``intervals.py``). Here the same
arithmetic runs on a tile with one element for every block, so that a work item learns at once where
its visible blocks begin and end, and which stretch of them no mask touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.layout import Layout
from tilewright.ir.types import IndexType
from tilewright.passes.to_tile.block_range import BlockRange, Span
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.intervals import Box, Interval, Intervals
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.tables import STRIDE
from tilewright.passes.to_tile.whole_blocks.row_bounds import added_to_position

AT_ONCE = 128  # blocks of a tile
_FAR = 1 << 60  # beyond every position


class TileIntegers(TileBuilder):
    """Index arithmetic on run-time integers and on i64 tiles alike: what is a tile in one operand
    makes a tile of the result."""

    def __init__(self, build: TileBuilder) -> None:
        super().__init__(build.stack)

    def __call__(self, cls: type[Op], *operands: Value, hint: str = "", **attrs: Any) -> Value:
        if cls is t.Read:
            return self._read(operands[0], operands[1:], hint)
        if operands and any(not isinstance(v.type, IndexType) for v in operands):
            wide = [self._tile(v) for v in operands]
            if cls is t.Less:
                return self.condition(super().__call__(m.Compare, *wide, relation="lt"))
            return super().__call__(cls, *wide, hint=hint, **attrs)
        return super().__call__(cls, *operands, hint=hint, **attrs)

    def _tile(self, value: Value) -> Value:
        return self.splat(value) if isinstance(value.type, IndexType) else value

    def condition(self, value: Value) -> Value:
        """A condition as 0 or 1."""
        return super().__call__(m.Cast, value, dtype=I64, hint="holds")

    def splat(self, x: Value, rank: int = 2) -> Value:
        return super().__call__(t.Splat, x, rank=rank, hint=x.hint)

    def _read(self, memory: Value, at: Sequence[Value], hint: str) -> Value:
        if all(isinstance(v.type, IndexType) for v in at):
            return super().__call__(t.Read, memory, *at, hint=hint)
        total: Value | None = None
        for dim, index in enumerate(at):
            stride = super().__call__(t.StrideOf, memory, dim=dim, hint="stride")
            term = self.mul(index, stride)
            total = term if total is None else self.add(total, term)
        assert total is not None
        found = super().__call__(t.Gather, memory, self.index(0), self._tile(total), hint=hint)
        same = getattr(found.type, "dtype", I64) == I64
        return found if same else super().__call__(m.Cast, found, dtype=I64, hint=hint)


class BlockIntervals(Intervals):
    """Intervals over many blocks of ``size`` positions at once."""

    def __init__(self, state: LoweringState, size: int) -> None:
        super().__init__(state)
        self.build, self.size = TileIntegers(state.build), size
        self.coarse = True

    def _range(
        self, minima: Value, before: list[Value], index: Interval, maxima: Value
    ) -> Interval | None:
        if _at_one_block(index):
            return super()._range(minima, before, index, maxima)
        return None  # no table

    def _entries(
        self,
        op: s.Source | s.Gather,
        tables: tuple[Value, Value],
        before: list[Value],
        index: Interval,
        box: Box,
    ) -> Interval | None:
        if _at_one_block(index):
            return super()._entries(op, tables, before, index, box)
        count = self._spanned(op, box)
        if count is None:
            return None
        b, low, high = self.build, index.low, index.low
        for entry in range(count):
            at = b.minimum(b.add(index.low, entry), index.high)
            least, most = (b(t.Read, x, *before, at, hint="read") for x in tables)
            low, high = (b.minimum(low, least), b.maximum(high, most)) if entry else (least, most)
        return Interval(low, high)

    def _spanned(self, op: s.Source | s.Gather, box: Box) -> int | None:
        """How many entries of a table a block's positions reach, at most; None where these are no
        neighbours, or others for every row. Blocks start at multiples of their size; what is added
        to their positions may be anything that a work item has one of."""
        step = math.gcd(self.size, STRIDE)
        if isinstance(op, s.Gather) and op.dims[-1] == (s.INDEXED,):
            added = added_to_position(self.info, op.indices[-1])
            if added is None:
                return None
            known = [self.of(value, box) for _, value in added]
            if not all(x is not None and x.exact for x in known):
                return None
            step = 1 if added else step
        return (STRIDE - step + self.size - 1) // STRIDE + 1


def _at_one_block(index: Interval) -> bool:
    """True for an interval that is the same for all blocks."""
    return isinstance(index.low.type, IndexType) and isinstance(index.high.type, IndexType)


class SeenBlocks:
    """Finds the blocks that a work item walks where masks have tests."""

    def __init__(self, state: LoweringState, mask: MaskRange, window: BlockRange) -> None:
        self.state, self.mask, self.info = state, mask, state.info
        self.size = state.schedule.inner_block
        self.intervals = BlockIntervals(state, self.size)
        self.build = TileIntegers(state.build)
        self.box = window.box()

    def narrowed(self, span: Span) -> Span:
        """Where visible blocks begin and end, and where a stretch of blocks seen as a whole does:
        empty if there are several. Blocks start at multiples of their size."""
        b, size = self.build, self.size
        first = b.mul(b.div(span[0], size), size)
        memo: dict[Value, Interval | None] = {}
        for test in self.mask.tests:
            self._prepare(test, memo)
        start = [b.index(_FAR), b.index(0), b.index(_FAR), b.index(0), b.index(0)]
        with self.state.build.loop(first, span[1], AT_ONCE * size, start, hint="stretch") as loop:
            found = self._chunk(loop.counter, span, dict(memo))
            rules = (b.minimum, b.maximum, b.minimum, b.maximum, b.add)
            parts = zip(rules, loop.carried, found, strict=True)
            loop.next = tuple(rule(old, new) for rule, old, new in parts)
        begin, end, whole, past, count = loop.results
        end = b.minimum(end, span[1])
        begin = b.minimum(begin, end)
        length, extent = b.mul(count, size), b.maximum(b.sub(past, whole), 0)
        joined = b.minimum(length, 1)
        joined = b.mul(joined, b.sub(b.index(1), b.minimum(b.sub(extent, length), 1)))
        return begin, end, self._either(joined, whole, end), self._either(joined, past, end)

    def _either(self, flag: Value, yes: Value, no: Value) -> Value:
        """``yes`` where the flag is 1, ``no`` where it is 0."""
        return self.build.add(no, self.build.mul(flag, self.build.sub(yes, no)))

    def _prepare(self, value: Value, memo: dict[Value, Interval | None]) -> None:
        """What does not depend on the inner axis, once for all blocks."""
        if not self.info.varies(value):
            self.intervals.of(value, self.box, memo)
            return
        op = self.info.made.get(value)
        for operand in op.operands if op is not None else ():
            if operand in self.info.made:
                self._prepare(operand, memo)

    def _chunk(
        self, start: Value, span: Span, memo: dict[Value, Interval | None]
    ) -> tuple[Value, ...]:
        """Of ``AT_ONCE`` blocks: where the visible ones begin and end, where those seen as a whole
        do, and how many these are."""
        b, size = self.build, self.size
        lane = b(t.Coordinate, dim=1, layout=Layout(2).local(1, AT_ONCE), hint="block")
        at = b.add(start, b.mul(lane, size))
        after = b.minimum(b.add(at, size), span[1])
        box = {**self.box, self.info.inner.name: Interval(at, b.sub(after, 1))}
        certain, possible = b.index(1), b.index(1)
        for test in self.mask.tests:
            found = self.intervals.of(test, box, memo)
            certain = b.minimum(certain, found.low) if found is not None else b.index(0)
            possible = b.minimum(possible, found.high) if found is not None else possible
        seen = b.mul(b(t.Less, at, span[1], hint="seen"), possible)
        past = b.add(at, size)
        inside = b.mul(self._reaches(span[2], at), self._reaches(past, span[3]))
        whole = b.mul(b.mul(seen, certain), inside)
        return (
            self._least(seen, at),
            self._most(seen, past),
            self._least(whole, at),
            self._most(whole, past),
            self._reduced(whole, "sum"),
        )

    def _reaches(self, low: Value, high: Value) -> Value:
        """1 if low <= high."""
        return self.build.sub(self.build.index(1), self.build(t.Less, high, low, hint="less"))

    def _least(self, flag: Value, at: Value) -> Value:
        return self._reduced(self._either(flag, at, self.build.index(_FAR)), "min")

    def _most(self, flag: Value, at: Value) -> Value:
        return self._reduced(self.build.mul(flag, at), "max")

    def _reduced(self, x: Value, kind: str) -> Value:
        total = self.build(t.Reduce, x, kind=kind, dim=1, hint=kind)
        return self.build(t.Integer, total, hint=kind)
