"""Shared operands in 16 bits whose neighbours in memory are positions, not elements (keys kept as
[terms, positions]): a block of one in scratch, turned as it lies in memory.

Element by element, every lane of a vector would be fetched for itself.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.state import LoweringState


class TurnedBlock:
    """A block of such an operand: f32 [terms, positions] or, for the bf16 dot instruction, pairs
    [terms / 2, positions, 2]."""

    def __init__(self, state: LoweringState, value: Value, source: s.Source, pairs: bool) -> None:
        self.state, self.build, self.source, self.pairs = state, state.build, source, pairs
        self.axis = state.info.element(value)[0]
        self.length = self.axis.size.constant or 0
        self.first: Value | None = None  # the position that the block starts with
        block = state.schedule.inner_block
        if pairs:
            shape, dtype = [-(-self.length // 2), block, 2], state.dtype(source.result)
        else:
            shape, dtype = [self.length, block], F32
        self.scratch = self.build.scratch(shape, dtype, f"{value.hint}_turned")

    def fill(self, first: Value, count: Value, limit: Value) -> None:
        """Brings the block that starts at ``first``, in whole register tiles: past ``limit`` the
        last position is repeated."""
        self.first = first
        b, lanes, tile = self.build, self.state.schedule.lanes, self.state.schedule.inner_tile
        whole = b.mul(b.div(count, lanes), lanes)
        read = b.mul(b.div(b.add(count, tile - 1), tile), tile)
        with b.loop(b.index(0), b.index(self.length), 1 + self.pairs, hint=self.axis.name) as term:
            with b.loop(b.index(0), whole, lanes, hint="position") as loop:
                self._bring(first, loop.counter, term.counter, [])
            with b.loop(whole, read, lanes, hint="position") as loop:
                self._bring(first, loop.counter, term.counter, [(1, "clamp", limit)])

    def _bring(
        self, first: Value, offset: Value, term: Value, bounds: list[tuple[int, str, Value]]
    ) -> None:
        b, state = self.build, self.state
        inner, lanes = state.info.inner.name, state.schedule.lanes
        here = {**state.grid_at, inner: b.add(first, offset), self.axis.name: term}
        indices, runs = state.source_index(self.source, here)
        dims = [0 if r == self.axis.name else 1 if r == inner else -1 for r in runs]
        layout = Layout(2).local(1 + self.pairs, 1).spatial(1, lanes)
        memory = state.buffers[self.source.tensor]
        x = b.load(memory, indices, dims, layout, bounds, hint=self.source.result.hint)
        if self.pairs:
            packed = b(t.PackPairs, x, dtype=state.dtype(self.source.result), hint="packed")
            b.store(packed, self.scratch, [b.div(term, 2), offset, b.index(0)], [0, 1, 2])
        else:
            wide = b(m.Cast, x, dtype=F32, hint=x.hint)
            b.store(wide, self.scratch, [term, offset], [0, 1])

    def load(
        self, position: Value, term: Value, layout: Layout, dims: tuple[int, int], hint: str
    ) -> Value:
        """A tile of the block that was filled last: from ``position`` on along tile dimension
        ``dims[0]``, terms (of pairs: pairs) along ``dims[1]``; of pairs, the two along dimension
        2."""
        assert self.first is not None
        at, along = [term, self.build.sub(position, self.first)], [dims[1], dims[0]]
        if self.pairs:
            at, along = [*at, self.build.index(0)], [*along, 2]
        return self.build.load(self.scratch, at, along, layout, hint=hint)
