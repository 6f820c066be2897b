"""Results that come once per position of the inner axis: a block of them is turned so that positions
lie on lanes, as they lie in memory, and written row by row."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.contraction import BlockLike
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
        x = b.load(kept, [loop.counter, row], [1, -1], layout, hint=sink.x.hint)
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
    bounds = [] if whole else [(1, b.add(block.first, block.count))]
    b.store(x, buffer, indices, dims, bounds)
