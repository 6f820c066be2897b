"""Scalars that come once per position of the inner axis: in memory positions lie side by side, in
register tiles rows do. Blocks of them are turned, on the way in and on the way out."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, BOOL, F16, F32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.block_range import BlockLike
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.state import LoweringState


def write_block(
    state: LoweringState, rows: RowLowering, block: BlockLike, sink: s.Sink, kept: Value
) -> None:
    """Writes a block of a result from scratch [position, row]."""
    if state.schedule.rows_on_lanes and state.schedule.lanes > 1:
        _turned(state, rows, block, sink, kept)
    else:
        _row_by_row(state, rows, block, sink, kept)


def _row_by_row(
    state: LoweringState, rows: RowLowering, block: BlockLike, sink: s.Sink, kept: Value
) -> None:
    b, lanes = state.build, state.schedule.lanes
    layout = state.lane_layout()
    with (
        rows.each_row(_rows_left(state), clamp=False) as (row, at),
        b.loop(b.index(0), block.count, lanes, hint="out") as loop,
    ):
        bounds = [(1, "zero", block.count)] if block.masked and lanes > 1 else []
        dims = state.kept_dims(1, -1) if lanes > 1 else [-1, -1]
        where = state.kept_at(loop.counter, row)
        x = b.load(kept, where, dims, layout, bounds, hint=sink.x.hint)
        _store(state, block, sink, x, at, loop.counter)


def _turned(
    state: LoweringState, rows: RowLowering, block: BlockLike, sink: s.Sink, kept: Value
) -> None:
    """Squares of as many rows and positions as there are lanes, transposed in registers."""
    b, lanes = state.build, state.schedule.lanes
    layout = Layout(2).local(lanes, 1).spatial(1, lanes)
    left = _rows_left(state)
    assert state.first_row is not None
    with b.loop(b.index(0), left, lanes, hint="group") as group:
        first = b.add(state.first_row, group.counter)
        at = [rows.position(b.add(first, number)) for number in range(lanes)]
        with b.loop(b.index(0), block.count, lanes, hint="out") as loop:
            bounds = [(0, "clamp", block.count)] if block.masked else []
            square = b.load(kept, [loop.counter, group.counter], [0, 1], layout, bounds)
            turned = b(t.Transpose, square, hint=sink.x.hint)
            for number in range(lanes):
                with b.when_less(b.add(group.counter, number), left):
                    x = b(t.Take, turned, at=number, hint=sink.x.hint)
                    _store(state, block, sink, x, at[number], loop.counter)


def _rows_left(state: LoweringState) -> Value:
    assert state.first_row is not None and state.row_total is not None
    left = state.build.sub(state.row_total, state.first_row)
    return state.build.minimum(left, state.schedule.rows)


def _store(
    state: LoweringState,
    block: BlockLike,
    sink: s.Sink,
    x: Value,
    at: dict[str, Value],
    offset: Value,
) -> None:
    """One row's vector of positions, those past the block's end left out."""
    b, name = state.build, state.info.inner.name
    dtype = state.dtype(sink.x)
    x = b(m.Cast, x, dtype=dtype) if getattr(x.type, "dtype", dtype) != dtype else x
    here = {**at, name: b.add(block.first, offset)}
    indices, runs = state.source_index(sink, here)
    buffer = state.buffers[sink.result]
    if state.schedule.lanes == 1:
        b.store(x, buffer, indices, [-1] * len(runs))
        return
    dims = [1 if run == name else -1 for run in runs]
    whole = not block.masked and state.schedule.inner_block % state.schedule.lanes == 0
    end = state.limit(sink, indices, here, name, b.add(block.first, block.count))
    bounds = [] if whole else [(1, end)]
    b.store(x, buffer, indices, dims, bounds)


class TurnedSources:
    """Scalar sources that change along the inner axis and from row to row, such as a mask.

    They lie in memory with positions side by side; register tiles want rows side by side. A block
    of them is read row by row, turned in registers and kept as f32 (bool as 0 and 1).
    """

    def __init__(self, state: LoweringState, rows: RowLowering) -> None:
        self.state, self.rows = state, rows
        self.kept: dict[Value, Value] = {}
        schedule = state.schedule
        if not schedule.rows_on_lanes or schedule.lanes == 1:
            return
        for op in state.info.graph.body.ops:
            if isinstance(op, s.Source) and self._applies(op):
                shape = [schedule.inner_block, schedule.rows]
                self.kept[op.result] = state.build.scratch(shape, F32, f"{op.result.hint}_turned")

    def _applies(self, op: s.Source) -> bool:
        """True if positions lie side by side and f32 holds the values."""
        info, dtype = self.state.info, self.state.dtype(op.result)
        scalar = not info.element(op.result)
        if not (scalar and info.varies(op.result) and info.on_rows(op.result)):
            return False
        last = len(op.dims) - 1
        buffer = self.state.buffers[op.tensor].type
        straight = op.dims[last] == (info.inner.name,) and getattr(buffer, "unit", -1) == last
        users = info.graph.uses().get(op.result, [])
        widened = all(isinstance(u, m.Cast) and u.dtype == F32 for u in users)
        return straight and (dtype in (F32, BOOL) or (dtype in (BF16, F16) and widened))

    def begin_block(self, block: BlockLike) -> None:
        """Turns the block of every such source, a square of rows and positions at a time."""
        b, state, lanes = self.state.build, self.state, self.state.schedule.lanes
        assert state.first_row is not None and state.row_total is not None
        tile = state.schedule.inner_tile
        whole = b.mul(b.div(b.add(block.count, tile - 1), tile), tile)  # whole tiles read it
        for value, kept in self.kept.items():
            with b.loop(b.index(0), b.index(state.schedule.rows), lanes, hint="group") as group:
                first, last = b.add(state.first_row, group.counter), b.sub(state.row_total, 1)
                at = [
                    self.rows.position(b.minimum(b.add(first, number), last))
                    for number in range(lanes)
                ]
                with b.loop(b.index(0), whole, lanes, hint="turn") as loop:
                    parts = [self._row(value, block, here, loop.counter) for here in at]
                    square = b(t.Transpose, b(t.Stack, *parts, hint="rows"), hint="turned")
                    b.store(square, kept, [loop.counter, group.counter], [0, 1])

    def _row(self, value: Value, block: BlockLike, at: dict[str, Value], offset: Value) -> Value:
        b, op = self.state.build, self.state.info.made[value]
        assert isinstance(op, s.Source)
        here = {**at, self.state.info.inner.name: b.add(block.first, offset)}
        indices, runs = self.state.source_index(op, here)
        dims = [1 if run == self.state.info.inner.name else -1 for run in runs]
        whole = self.state.schedule.inner_block % self.state.schedule.lanes == 0
        bounds = [] if whole and not block.masked else [(1, "zero", block.limit)]
        layout = self.state.lane_layout()
        x = b.load(self.state.buffers[op.tensor], indices, dims, layout, bounds, hint=value.hint)
        return x if self.state.dtype(value) == F32 else b(m.Cast, x, dtype=F32, hint=value.hint)

    def tile(self, value: Value, offset: Value) -> Value:
        """The register tile at an offset within the block."""
        b = self.state.build
        at = [offset, b.index(0)]
        x = b.load(self.kept[value], at, [0, 1], self.state.tile_layout, hint=value.hint)
        if self.state.dtype(value) != BOOL:
            return x
        return b(m.Compare, x, b.number(0.0, F32), relation="ne", hint=value.hint)
