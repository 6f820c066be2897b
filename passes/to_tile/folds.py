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
from tilewright.ir.types import Axis
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
        whole: bool = False,
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
    known = axis.size.constant
    if state.schedule.row_parts:
        return _in_parts(state, points, op, at, row, done)
    width = FOLD_VECTORS if known is None else max(1, min(FOLD_VECTORS, known // lanes))
    layout = state.lane_layout(width)
    partial = _beside(state, points, op, at, row, done, layout)
    total = b(t.Reduce, partial, kind=op.kind, dim=1, hint=op.result.hint)
    return _rest(state, points, op, at, row, width * lanes, total, done)


def _beside(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    done: dict[Value, Value],
    layout: Layout,
) -> Value:
    """Partial results of whole steps of a row, one for each element of the layout."""
    b, step = state.build, layout.shape[1]
    axis = _axis(state, op)
    acc = b.filled(IDENTITY[op.kind], state.dtype(op.x), layout)
    with b.loop(b.index(0), b.whole(axis.size, step), step, [acc], hint=axis.name) as loop:
        here = {**at, axis.name: loop.counter}
        x = points.at_point(op.x, here, layout, row, dict(done), whole=True)
        loop.next = (state.combine(op.kind, x, loop.carried[0]),)
    return loop.results[0]


def _rest(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    step: int,
    total: Value,
    done: dict[Value, Value],
) -> Value:
    """What whole steps leave of a row, vector by vector."""
    b, lanes, axis = state.build, state.schedule.lanes, _axis(state, op)
    layout, known = state.lane_layout(), axis.size.constant

    def joined(first: Value, total: Value) -> Value:
        x = _cut_off(state, points, op, {**at, axis.name: first}, row, layout, done)
        part = b(t.Reduce, x, kind=op.kind, dim=1, hint=op.result.hint)
        return state.combine(op.kind, part, total)

    if known is not None:
        for first in range(known // step * step, known, lanes):
            total = joined(b.index(first), total)
        return total
    with b.loop(b.whole(axis.size, step), b.size(axis.size), lanes, [total]) as loop:
        loop.next = (joined(loop.counter, loop.carried[0]),)
    return loop.results[0]


def _cut_off(
    state: LoweringState,
    points: Points,
    op: s.Fold,
    at: dict[str, Value],
    row: Value | None,
    layout: Layout,
    done: dict[Value, Value],
) -> Value:
    """Numbers of a row; those past its end count as nothing."""
    b, axis, step = state.build, _axis(state, op), layout.shape[1]
    x = points.at_point(op.x, at, layout, row, dict(done))
    if not state.may_end_within(axis, step):
        return x
    lane = b(t.Coordinate, dim=1, layout=layout)
    left = b.splat(b.sub(b.size(axis.size), at[axis.name]))
    inside = b(m.Compare, lane, left, relation="lt")
    return b(m.Select, inside, x, b.number(IDENTITY[op.kind], state.dtype(op.x)))


def _axis(state: LoweringState, op: s.Fold) -> Axis:
    """The axis of an element that is reduced."""
    return next(a for a in state.info.element(op.x) if a.name == op.axis)


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
    b, y, axis = state.build, state.schedule, _axis(state, op)
    parts, layout = y.row_parts, state.lane_layout(y.row_parts // y.lanes)
    total = _beside(state, points, op, at, row, done, layout)
    if state.may_end_within(axis, parts):
        last = b.whole(axis.size, parts)  # a loop of one turn, or of none
        with b.loop(last, b.size(axis.size), parts, [total], hint="rest") as loop:
            here = {**at, axis.name: loop.counter}
            x = _cut_off(state, points, op, here, row, layout, done)
            loop.next = (state.combine(op.kind, x, loop.carried[0]),)
        total = loop.results[0]
    return b(t.Reduce, total, kind=op.kind, dim=1, halves=True, hint=op.result.hint)
