"""Single numbers from memory for register tiles, and memory read at computed positions."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.types import TensorType
from tilewright.passes.to_tile.intervals import Interval, Intervals
from tilewright.passes.to_tile.state import LoweringState


def positions_in_memory(
    state: LoweringState, op: s.Source | s.Gather, at: dict[str, Value]
) -> tuple[list[Value], list[str]]:
    """Index per dimension for positions of axes (missing ones start at 0), and the axis that runs
    along each dimension ("": none)."""
    if isinstance(op, s.Source):
        return state.source_index(op, at)
    b, indices, runs = state.build, [], []
    given = list(op.indices)
    for dim, (name,) in enumerate(op.dims):
        if name != s.INDEXED:
            indices.append(at.get(name, b.index(0)))
            runs.append(name)
            continue
        intervals = Intervals(state)
        index = intervals.value(given.pop(0), at)
        if index is None:
            raise UnsupportedError("an index that is not made of integers and positions", op.loc)
        indices.append(intervals.inside(op, dim, Interval.of(index)).low)
        runs.append("")
    return indices, runs


def integer_at(state: LoweringState, value: Value, at: dict[str, Value], rank: int) -> Value | None:
    """An integer or a condition at one position as a tile of one element; None for others."""
    b, dtype = state.build, state.dtype(value)
    if dtype.is_float or state.info.element(value):
        return None
    found = Intervals(state).value(value, at)
    if found is None:
        return None
    if dtype == BOOL:
        zero = b.number(0, I64, rank)
        return b(m.Compare, b.splat(found, rank), zero, relation="ne", hint=value.hint)
    return state.build.number_of(found, dtype, rank)


def load_gathered(
    state: LoweringState, op: s.Gather, at: dict[str, Value], layout: Layout, whole: bool = False
) -> Value:
    """The element at one position, its axis along tile dimension 1 from ``at[axis]``; ``whole``: it
    does not end before the tile does."""
    b, element = state.build, state.info.element(op.result)
    indices, runs = positions_in_memory(state, op, at)
    buffer, hint = state.buffers[op.tensor], op.result.hint
    if not element:
        return b.load(buffer, indices, [-1] * len(runs), Layout(2), hint=hint)
    axis, width = element[0], layout.shape[1]
    dims = [1 if run == axis.name and width > 1 else -1 for run in runs]
    short = not whole and state.may_end_within(axis, width)
    bounds = [(1, "zero", b.size(axis.size))] if short else []
    return b.load(buffer, indices, dims, layout, bounds, hint=hint)


def gather_tile(state: LoweringState, op: s.Gather, at: Sequence[Value]) -> Value:
    """A register tile of single elements: ``at`` has a tile of positions for each dimension."""
    b, buffer = state.build, state.buffers[op.tensor]
    if state.info.element(op.result):
        raise UnsupportedError("a gather of whole elements for every pair of positions", op.loc)
    assert isinstance(op.tensor.type, TensorType)
    total: Value | None = None
    for dim, (index, size) in enumerate(zip(at, op.tensor.type.shape, strict=True)):
        wide = index if getattr(index.type, "dtype", I64) == I64 else b(m.Cast, index, dtype=I64)
        last = b.splat(b.sub(b.size(size), 1))
        inside = b(m.Max, b(m.Min, wide, last), b.number(0, I64), hint="inside")
        stride = b.splat(b(t.StrideOf, buffer, dim=dim, hint="stride"))
        term = b(m.Mul, inside, stride, hint="along")
        total = term if total is None else b(m.Add, total, term, hint="offsets")
    assert total is not None
    return b(t.Gather, buffer, b.index(0), total, hint=op.result.hint)


def source_tile(
    state: LoweringState, op: s.Source, at: Value, start: Value | None, limit: Value | None
) -> Value:
    """A scalar source along the inner axis from position ``at``: one number per position, or, with
    where each row starts in memory, one for every pair. Past ``limit`` the last is repeated."""
    b, name = state.build, state.info.inner.name
    buffer, layout = state.buffers[op.tensor], state.tile_layout.collapse(1)
    dim = next(i for i, names in enumerate(op.dims) if name in names)
    if op.dims[dim] != (name,):
        raise UnsupportedError("the inner axis is part of a merged dimension", op.loc)
    if start is None:
        indices, _ = state.source_index(op, {**state.grid_at, name: at})
        dims = [0 if i == dim else -1 for i in range(len(op.dims))]
        bounds = [(0, "clamp", limit)] if limit is not None else []
        return b.load(buffer, indices, dims, layout, bounds, hint=op.result.hint)
    here = state.positions(at, I64)
    if limit is not None:
        here = b(m.Min, here, b.splat(b.sub(limit, 1)), hint="position")
    stride = b.splat(b(t.StrideOf, buffer, dim=dim, hint="stride"))
    offsets = b(m.Add, b(m.Mul, here, stride, hint="along"), start, hint="offsets")
    return b(t.Gather, buffer, b.index(0), offsets, hint=op.result.hint)
