"""Kernels that compute each row by itself, such as a normalisation: the row's elements lie on
lanes.

Each reduction over the element's axis is one walk over the row, the results another; a row is small
enough to stay in the nearest caches between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.ops_stream import IDENTITY
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.state import LoweringState


def lower_row_kernel(state: LoweringState, rows: RowLowering, sinks: Sequence[s.Sink]) -> None:
    """The program of one block of rows."""
    b = state.build
    block = b(t.BlockId, dim=0, hint="row_block")
    state.first_row = b.mul(block, state.schedule.rows)
    state.row_total = b.size(state.info.row_count)
    count = b.minimum(b.sub(state.row_total, state.first_row), state.schedule.rows)
    folds = [op for op in state.info.graph.body.ops if isinstance(op, s.Fold)]
    with rows.each_row(count, clamp=False) as (row, at):
        for op in folds:
            rows.folded[op.result] = _fold(state, rows, op, at)
        for sink in sinks:
            rows.write(sink, row, at)


def _fold(state: LoweringState, rows: RowLowering, op: s.Fold, at: dict[str, Value]) -> Value:
    """One reduction over a row: several partial results of whole vectors, then across lanes."""
    b, lanes = state.build, state.schedule.lanes
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    length = axis.size.constant or 0
    width = max(1, min(state.schedule.element_tile, length // lanes))
    step = width * lanes
    layout = state.lane_layout(width)
    whole = length // step * step
    dtype = state.dtype(op.x)
    acc = b.filled(IDENTITY[op.kind], dtype, layout)
    with b.loop(b.index(0), b.index(whole), step, [acc], hint=axis.name) as loop:
        x = rows.at_point(op.x, {**at, axis.name: loop.counter}, layout)
        loop.next = (_combine(state, op.kind, x, loop.carried[0]),)
    total = b(t.Reduce, loop.results[0], kind=op.kind, dim=1, hint=op.result.hint)
    return _rest(state, rows, op, at, whole, total)


def _rest(
    state: LoweringState,
    rows: RowLowering,
    op: s.Fold,
    at: dict[str, Value],
    start: int,
    total: Value,
) -> Value:
    """What is left of a row, vector by vector; lanes past its end count as nothing."""
    b, lanes = state.build, state.schedule.lanes
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    length = axis.size.constant or 0
    layout, dtype = state.lane_layout(), state.dtype(op.x)
    for first in range(start, length, lanes):
        x = rows.at_point(op.x, {**at, axis.name: b.index(first)}, layout)
        if first + lanes > length:
            here = b(t.Coordinate, dim=1, layout=layout)
            inside = b(m.Compare, here, b.splat(b.index(length - first)), relation="lt")
            x = b(m.Select, inside, x, b.number(IDENTITY[op.kind], dtype))
        part = b(t.Reduce, x, kind=op.kind, dim=1, hint=op.result.hint)
        total = _combine(state, op.kind, part, total)
    return total


def _combine(state: LoweringState, kind: str, a: Value, c: Value) -> Value:
    cls = {"sum": m.Add, "max": m.Larger, "min": m.Smaller}[kind]
    return state.build(cls, a, c, hint=kind)
