"""Reductions over the axis of one row's element, such as the mean square of a normalisation: one
walk over the row, its elements on lanes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_stream import IDENTITY
from tilewright.passes.to_tile.state import LoweringState

FOLD_VECTORS = 4  # partial results of a walk, to hide the latency of adding


class Points(Protocol):
    """Values of one row at positions of its element."""

    def at_point(
        self,
        value: Value,
        at: dict[str, Value],
        layout: Layout,
        row: Value | None = None,
        memo: dict[Value, Value] | None = None,
    ) -> Value: ...


def needed_folds(state: LoweringState, values: Iterable[Value]) -> list[s.Fold]:
    """The reductions over elements that ``values`` are computed from, in order."""
    made = state.info.made
    seen: set[Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        op = made.get(value)
        if value in seen or op is None or isinstance(op, s.Reduce | s.Scan | s.Source):
            continue
        seen.add(value)
        stack.extend(op.operands)
    ops = state.info.graph.body.ops
    return [op for op in ops if isinstance(op, s.Fold) and op.result in seen]


def fold_all(
    state: LoweringState,
    points: Points,
    ops: Iterable[s.Fold],
    at: dict[str, Value],
    row: Value | None = None,
) -> dict[Value, Value]:
    """The results for the row at ``at``, later ones from earlier ones. ``row`` is its number within
    the block, for folds of what was reduced along the inner axis."""
    done: dict[Value, Value] = {}
    for op in ops:
        done[op.result] = _fold(state, points, op, at, row, done)
    return done


def _fold(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    done: dict[Value, Value],
) -> Value:
    """One reduction over a row: several partial results of whole vectors, then across lanes."""
    b, lanes = state.build, state.schedule.lanes
    if len(state.info.element(op.x)) > 1:
        raise UnsupportedError("a reduction of a matrix for every row", op.loc)
    (axis,) = state.info.element(op.x)
    length = axis.size.constant or 0
    if state.schedule.row_parts:
        return _in_parts(state, points, op, at, row, done)
    width = max(1, min(FOLD_VECTORS, length // lanes))
    step = width * lanes
    layout = state.lane_layout(width)
    whole = length // step * step
    partial = _beside(state, points, op, at, row, done, layout, step)
    total = b(t.Reduce, partial, kind=op.kind, dim=1, hint=op.result.hint)
    return _rest(state, points, op, at, row, whole, total, done)


def _beside(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    done: dict[Value, Value],
    layout: Layout,
    step: int,
) -> Value:
    """Partial results of whole steps of a row, one for each element of the layout."""
    b = state.build
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    whole = (axis.size.constant or 0) // step * step
    acc = b.filled(IDENTITY[op.kind], state.dtype(op.x), layout)
    with b.loop(b.index(0), b.index(whole), step, [acc], hint=axis.name) as loop:
        here = {**at, axis.name: loop.counter}
        x = points.at_point(op.x, here, layout, row, memo=dict(done))
        loop.next = (state.combine(op.kind, x, loop.carried[0]),)
    return loop.results[0]


def _rest(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    start: int,
    total: Value,
    done: dict[Value, Value],
) -> Value:
    """What is left of a row, vector by vector; lanes past its end count as nothing."""
    b, lanes = state.build, state.schedule.lanes
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    length = axis.size.constant or 0
    layout, dtype = state.lane_layout(), state.dtype(op.x)
    for first in range(start, length, lanes):
        here = {**at, axis.name: b.index(first)}
        x = points.at_point(op.x, here, layout, row, memo=dict(done))
        if first + lanes > length:
            lane = b(t.Coordinate, dim=1, layout=layout)
            inside = b(m.Compare, lane, b.splat(b.index(length - first)), relation="lt")
            x = b(m.Select, inside, x, b.number(IDENTITY[op.kind], dtype))
        part = b(t.Reduce, x, kind=op.kind, dim=1, hint=op.result.hint)
        total = state.combine(op.kind, part, total)
    return total


def _in_parts(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    done: dict[Value, Value],
) -> Value:
    """One reduction over a row as ``row_parts`` partial results, element i in part i modulo their
    number: on every machine the same, whatever its lanes."""
    b, y = state.build, state.schedule
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    length, parts = axis.size.constant or 0, y.row_parts
    layout, dtype = state.lane_layout(parts // y.lanes), state.dtype(op.x)
    whole = length // parts * parts
    total = _beside(state, points, op, at, row, done, layout, parts)
    if whole < length:
        here = {**at, axis.name: b.index(whole)}
        x = points.at_point(op.x, here, layout, row, memo=dict(done))
        lane = b(t.Coordinate, dim=1, layout=layout)
        inside = b(m.Compare, lane, b.splat(b.index(length - whole)), relation="lt")
        x = b(m.Select, inside, x, b.number(IDENTITY[op.kind], dtype))
        total = state.combine(op.kind, x, total)
    return b(t.Reduce, total, kind=op.kind, dim=1, halves=True, hint=op.result.hint)
