"""Rows that lie on lanes while the block runs, but have their elements side by side in memory.
Turned in registers on the way in and out, squares of as many rows and elements as lanes.

One by one, a block's rows would cost a scalar store (and load) for every element.
"""

from __future__ import annotations

from typing import Protocol

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.types import Axis
from tilewright.passes.to_tile.folds import Points, fold_all, needed_folds
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.state import LoweringState


class RowValues(Points, Protocol):
    """Where rows are, and what they bring."""

    def position(self, row: Value) -> dict[str, Value]: ...


def turns(state: LoweringState) -> bool:
    """True if rows lie on lanes, several of them."""
    return state.schedule.rows_on_lanes and state.schedule.lanes > 1


def pack_turned(state: LoweringState, rows: RowValues, value: Value) -> None:
    """Fills ``packed[element, row]`` of a row operand in f32; past the last row it is repeated."""
    b, lanes = state.build, state.schedule.lanes
    axis = state.info.element(value)[0]
    assert state.first_row is not None and state.row_total is not None
    last = b.sub(state.row_total, 1)
    with b.loop(b.index(0), b.index(state.schedule.rows), lanes, hint="group") as group:
        first = b.add(state.first_row, group.counter)
        at = [rows.position(b.minimum(b.add(first, i), last)) for i in range(lanes)]
        folds = needed_folds(state, [value])
        folded = [fold_all(state, rows, folds, here) for here in at]
        with b.loop(b.index(0), b.index(axis.size.constant or 0), lanes, hint=axis.name) as loop:
            parts = []
            for here, done in zip(at, folded, strict=True):
                point = {**here, axis.name: loop.counter}
                x = rows.at_point(value, point, state.lane_layout(), memo=dict(done))
                parts.append(x if state.dtype(value) == F32 else b(m.Cast, x, dtype=F32))
            square = b(t.Transpose, b(t.Stack, *parts, hint="rows"), hint=value.hint)
            b.store(square, state.packed[value], [loop.counter, group.counter], [0, 1])


def can_write_turned(state: LoweringState, sink: s.Sink) -> bool:
    """True if a result's rows are made from sums that lie turned, and nothing else."""
    element = state.info.element(sink.x)
    if not turns(state) or len(element) != 1:
        return False
    below, casts = strip_casts(state.info, sink.x)
    narrow = [c for c in casts if state.dtype(c.operands[0]) != F32]
    return not narrow and state.dtype(below) == F32 and _from_sums(state, below)


def _from_sums(state: LoweringState, value: Value) -> bool:
    op = state.info.made.get(value)
    if isinstance(op, s.Reduce | m.Const):
        return True
    pointwise = op is not None and "pointwise" in op.traits and bool(op.operands)
    return pointwise and op is not None and all(_from_sums(state, v) for v in op.operands)


def write_turned(state: LoweringState, rows: RowValues, sink: s.Sink) -> None:
    """Writes the rows of a result."""
    b, lanes = state.build, state.schedule.lanes
    (axis,) = state.info.element(sink.x)
    below, _ = strip_casts(state.info, sink.x)
    assert state.first_row is not None and state.row_total is not None
    left = b.minimum(b.sub(state.row_total, state.first_row), state.schedule.rows)
    length = axis.size.constant or 0
    with b.loop(b.index(0), left, lanes, hint="group") as group:
        first = b.add(state.first_row, group.counter)
        at = [rows.position(b.add(first, i)) for i in range(lanes)]
        memo: dict[Value, Value] = {}
        _row_values(state, below, group.counter, memo)
        with b.loop(b.index(0), b.index(length), lanes, hint=axis.name) as loop:
            square = _square(state, below, axis, loop.counter, group.counter, dict(memo))
            turned = b(t.Transpose, square, hint=sink.x.hint)
            for number in range(lanes):
                with b.when_less(b.add(group.counter, number), left):
                    row = b(t.Take, turned, at=number, hint=sink.x.hint)
                    _store_row(state, sink, row, {**at[number], axis.name: loop.counter}, axis)


def _row_values(state: LoweringState, value: Value, group: Value, memo: dict[Value, Value]) -> None:
    """What is one number per row, such as a sum that others are divided by, once for all
    elements."""
    op = state.info.made.get(value)
    if op is None or isinstance(op, m.Const):
        return
    if not state.info.element(value):
        state.expression(
            value, lambda v: _state_leaf(state, v, [state.build.index(0), group]), memo
        )
        return
    for operand in () if isinstance(op, s.Reduce) else op.operands:
        _row_values(state, operand, group, memo)


def _state_leaf(state: LoweringState, value: Value, at: list[Value]) -> Value | None:
    if not isinstance(state.info.made.get(value), s.Reduce):
        return None
    layout = Layout(2).spatial(1, state.schedule.lanes)
    return state.build.load(state.sums[value], at, [0, 1], layout, hint=value.hint)


def _square(
    state: LoweringState,
    value: Value,
    axis: Axis,
    start: Value,
    group: Value,
    memo: dict[Value, Value],
) -> Value:
    """The result [elements, rows] of a square."""
    b, lanes = state.build, state.schedule.lanes
    layout = Layout(2).local(lanes, 1).spatial(1, lanes)
    length = axis.size.constant or 0
    bounds = [(0, "clamp", b.index(length))] if length % lanes else []

    def leaf(v: Value) -> Value | None:
        if not isinstance(state.info.made.get(v), s.Reduce):
            return None
        scratch = state.sums[v]
        return b.load(scratch, [start, group], [0, 1], layout, bounds, hint=v.hint)

    return state.expression(value, leaf, memo)


def _store_row(
    state: LoweringState, sink: s.Sink, x: Value, here: dict[str, Value], axis: Axis
) -> None:
    b, dtype = state.build, state.dtype(sink.x)
    x = x if dtype == F32 else b(m.Cast, x, dtype=dtype, hint=x.hint)
    indices, runs = state.source_index(sink, here)
    dims = [1 if run == axis.name else -1 for run in runs]
    length = axis.size.constant or 0
    end = state.limit(sink, indices, here, axis.name, b.index(length))
    bounds = [(1, end)] if length % state.schedule.lanes else []
    b.store(x, state.buffers[sink.result], indices, dims, bounds)
