"""The side of a product that rows share: read in place, converted, prefetched, walked along."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_remake import RemakeStream
from tilewright.passes.to_tile.cached.info import cached_of
from tilewright.passes.to_tile.cached.unpacked import UnpackedBlock
from tilewright.passes.to_tile.elements import cut_off, index_at, rolled
from tilewright.passes.to_tile.gathers import integer_at, positions_in_memory
from tilewright.passes.to_tile.made import MadeBlock, made_positions, remakes, remakes_below, sides
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.turned_block import TurnedBlock


class InnerOperand:
    """The side of a product that the rows share: read in place, or brought to f32 in scratch."""

    def __init__(self, state: LoweringState, rows: RowLowering, value: Value) -> None:
        self.state, self.rows, self.value = state, rows, value
        self.build, self.info = state.build, state.info
        self.axis = state.info.element(value)[0]
        self.source = self._direct_source()
        turned = state.turned_source(value) if state.schedule.lanes > 1 else None
        if state.schedule.positions_on_lanes:
            self.source, turned = self.source or turned, None
        self.turned_block: TurnedBlock | None = None
        self.converted: Value | None = None
        self.first: Value | None = None  # the position that the copy starts with
        self.unpacked: UnpackedBlock | None = None
        self.below = [_made_block(state, rows, op) for op in remakes_below(state.info, value)]
        self.made = self.below[0] if value in state.made_blocks else None
        cached = cached_of(state.info, value)
        always = state.schedule.rows_on_lanes or bool(remakes(state.info.graph))
        if cached is not None and always:
            self.unpacked = UnpackedBlock(state, cached)
        elif turned is not None and self.source is None and state.schedule.rows_on_lanes:
            self.turned_block = TurnedBlock(state, value, turned, pairs=False)
        elif self.source is None and always and self.made is None:
            shape = [state.schedule.inner_block, state.padded(self.axis)]
            self.converted = self.build.scratch(shape, F32, f"{value.hint}_block")

    @property
    def in_scratch(self) -> bool:
        blocks = self.made, self.unpacked, self.turned_block, self.converted
        return any(x is not None for x in blocks)

    def _direct_source(self) -> s.Source | None:
        op = self.info.made.get(self.value)
        inner = (self.info.inner.name,)
        if isinstance(op, s.Source) and self.state.dtype(self.value) == F32 and inner in op.dims:
            return op if (self.axis.name,) in op.dims else None
        return None

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Fills the converted copy for a block, in whole register tiles (the last ones
        repeated)."""
        if self.first is first:  # several products read it
            return
        self.first = first
        for block in self.below:
            block.begin_block(first, count, limit)
        if self.unpacked is not None:
            self.unpacked.fill(first, count, limit)
        if self.turned_block is not None:
            self.turned_block.fill(first, count, limit)
        if self.converted is None:
            return
        b, lanes = self.build, self.state.schedule.lanes
        tile = self.state.schedule.inner_tile
        if remakes(self.info.graph):
            tile = max(tile, made_positions(self.state.schedule))
        whole = b.mul(b.div(b.add(count, tile - 1), tile), tile)
        layout = self.state.lane_layout()
        length = self.axis.size.constant or 0
        with b.loop(b.index(0), whole, 1, hint="position") as position:
            at = b.minimum(b.add(first, position.counter), b.sub(limit, 1))
            with b.loop(b.index(0), b.index(length), lanes, hint=self.axis.name) as loop:
                here = {
                    **self.state.grid_at,
                    self.info.inner.name: at,
                    self.axis.name: loop.counter,
                }
                x = self.rows.at_point(self.value, here, layout)
                x = cut_off(self.state, self.value, x, loop.counter, layout, 1)
                if self.state.dtype(self.value) != F32:
                    x = b(m.Cast, x, dtype=F32, hint=x.hint)
                b.store(
                    x,
                    self.converted,
                    [position.counter, loop.counter],
                    [-1, 1] if lanes > 1 else [-1, -1],
                )

    def load(
        self,
        at: Value,
        element: Value,
        layout: Layout,
        dims: tuple[int, int],
        limit: Value | None,
    ) -> Value:
        """A tile: positions along tile dimension ``dims[0]``, elements along ``dims[1]`` (-1:
        one)."""
        b = self.build
        if self.made is not None:
            return self.made.load(at, element, layout, dims, self.value.hint)
        if self.unpacked is not None:
            assert self.first is not None
            offset = b.sub(at, self.first)
            return self.unpacked.load(offset, element, dims, layout, self.value.hint)
        if self.turned_block is not None:
            return self.turned_block.load(at, element, layout, dims, self.value.hint)
        if self.source is None:
            assert self.converted is not None and self.first is not None
            offset = b.sub(at, self.first)
            return b.load(self.converted, [offset, element], dims, layout, hint=self.value.hint)
        name = self.info.inner.name
        here = {**self.state.grid_at, name: at, self.axis.name: element}
        indices, runs = self.state.source_index(self.source, here)
        where = {name: dims[0], self.axis.name: dims[1]}
        bounds = []
        if limit is not None and dims[0] >= 0 and layout.shape[dims[0]] > 1:
            bounds = [(dims[0], "clamp", limit)]
        buffer = self.state.buffers[self.source.tensor]
        along = [where.get(run, -1) for run in runs]
        x = b.load(buffer, indices, along, layout, bounds, hint=self.value.hint)
        narrow = self.state.dtype(self.source.result) != F32
        return b(m.Cast, x, dtype=F32, hint=x.hint) if narrow else x


def shared_operand(state: LoweringState, rows: RowLowering, value: Value) -> InnerOperand:
    """The operand for ``value``, one for all products that read it."""
    found = state.shared.get(value)
    if found is None:
        found = state.shared[value] = InnerOperand(state, rows, value)
    assert isinstance(found, InnerOperand)
    return found


def _made_block(state: LoweringState, rows: RowLowering, op: RemakeStream) -> MadeBlock:
    found = state.made_blocks.get(op.result)
    if found is None:
        given, _ = sides(state.info, op)
        found = MadeBlock(state, op, shared_operand(state, rows, given))
        state.made_blocks[op.result] = found
    assert isinstance(found, MadeBlock)
    return found


def row_tile_layout(state: LoweringState, packed: int) -> Layout:
    """[1, rows, packed]: rows on lanes."""
    y = state.schedule
    layout = Layout(3).local(1, state.tile_rows // y.lanes, 1).spatial(1, y.lanes, 1)
    return layout.local(1, 1, packed)


def lanes_expression(
    state: LoweringState,
    value: Value,
    here: dict[str, Value],
    where: dict[str, int],
    layout: Layout,
    length: int,
) -> Value:
    """A shared operand in f32 with its element's axis on lanes, computed from what lies in
    memory."""
    x = _lanes_as_typed(state, value, here, where, layout, length)
    return x if state.dtype(value) == F32 else state.build(m.Cast, x, dtype=F32, hint=x.hint)


def _lanes_as_typed(
    state: LoweringState,
    value: Value,
    here: dict[str, Value],
    where: dict[str, int],
    layout: Layout,
    length: int,
) -> Value:
    b, info = state.build, state.info
    element = info.element(value)[0].name

    def leaf(v: Value) -> Value | None:
        op = info.made.get(v)
        if isinstance(op, m.Const):
            return b.number(op.value, state.dtype(v), layout.rank)
        if isinstance(op, s.Index) and op.axis == element:
            return index_at(state, op, here, layout, where[element])
        if isinstance(op, s.Roll):
            moved = rolled(state, op, here, layout.shape[where[element]])
            return _lanes_as_typed(state, op.x, moved, where, layout, length)
        if not isinstance(op, s.Source | s.Gather):
            return integer_at(state, v, here, layout.rank)
        indices, runs = positions_in_memory(state, op, here)
        memory = state.buffers[op.tensor]
        if not info.element(v):  # one number of a position, for its whole element
            return b.load(memory, indices, [-1] * len(runs), Layout(layout.rank), hint=v.hint)
        dims = [where.get(r, -1) for r in runs]
        bounds = []
        if length % layout.shape[where[element]]:
            end = b.index(length)
            if isinstance(op, s.Source):
                end = state.limit(op, indices, here, element, end)
            bounds.append((where[element], "zero", end))
        return b.load(memory, indices, dims, layout, bounds, hint=v.hint)

    return state.expression(value, leaf, {})


def prefetch_sources(
    state: LoweringState,
    value: Value,
    here: dict[str, Value],
    where: dict[str, int],
    layout: Layout,
) -> None:
    """Asks for what ``lanes_expression`` would read at a position."""
    op = state.info.made.get(value)
    if isinstance(op, s.Source | s.Gather):
        if not state.info.element(value):
            return
        indices, runs = positions_in_memory(state, op, here)
        dims = [where.get(r, -1) for r in runs]
        state.build.prefetch(state.buffers[op.tensor], indices, dims, layout)
        return
    for operand in op.operands if op is not None else ():
        prefetch_sources(state, operand, here, where, layout)


def unrolled(
    state: LoweringState,
    lo: Value,
    hi: Value,
    unroll: int,
    acc: Value,
    step: Callable[[Value, Value], Value],
    length: int | None = None,
) -> Value:
    """acc = step(acc, i) for lo <= i < hi, ``unroll`` at a time, the rest one by one.

    ``length`` is hi - lo or divides it, if known: a multiple of ``unroll`` then needs no rest.
    """
    b = state.build
    whole = b.add(lo, b.mul(b.div(b.sub(hi, lo), unroll), unroll)) if unroll > 1 else lo
    if unroll > 1 and (length is None or length >= unroll):
        with b.loop(lo, whole, unroll, [acc], hint="k") as loop:
            inner = loop.carried[0]
            for number in range(unroll):
                inner = step(inner, b.add(loop.counter, number))
            loop.next = (inner,)
        acc = loop.results[0]
    if length is None or unroll == 1 or length % unroll:
        with b.loop(whole, hi, 1, [acc], hint="k") as loop:
            loop.next = (step(loop.carried[0], loop.counter),)
        acc = loop.results[0]
    return acc
