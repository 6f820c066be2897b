"""Work done once per row: packing what a row brings, the running states' start, writing results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BF16, F32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_stream import IDENTITY
from tilewright.ir.types import Axis, TensorType
from tilewright.passes.to_tile.elements import cut_off, index_at, rolled
from tilewright.passes.to_tile.folds import fold_all, needed_folds
from tilewright.passes.to_tile.gathers import load_gathered
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.state import LoweringState, RowKey, round_up
from tilewright.passes.to_tile.turned_rows import can_write_turned, pack_turned, turns, write_turned


class RowLowering:
    """Prologue and epilogue of a kernel."""

    def __init__(self, state: LoweringState) -> None:
        self.state, self.info, self.schedule = state, state.info, state.schedule
        self.build = state.build
        self.folded: dict[Value, Value] = {}  # results of reductions over an element's axis

    # ---- prologue

    def begin(self) -> None:
        """Positions of this work item, packed rows, states at their start."""
        b, info = self.build, self.info
        from tilewright.ir.ops_tile import BlockId

        for dim, axis in enumerate(info.grid):
            self.state.grid_at[axis.name] = b(BlockId, dim=dim, hint=f"{axis.name}_at")
        if self.state.shares:
            self.state.part = b(BlockId, dim=len(info.grid), hint="part")
        before = len(info.grid) + (info.splits or self.state.shares)
        block = b(BlockId, dim=before, hint="row_block")
        self.state.first_row = b.mul(block, self.schedule.rows)
        self.state.row_total = b.size(info.row_count)
        operands = self._row_operands()
        scalars = self._row_scalars()
        for value in operands:
            self.state.packed[value] = self._packed_scratch(value)
        for key, dtype in scalars.items():
            name = f"row_{key[0]}_{key[1].hint}"
            self.state.row_vectors[key] = b.scratch([1, self.schedule.rows], dtype, name)
        turned = [v for v in operands if turns(self.state) and not self._uses_pairs(v)]
        for value in turned:
            pack_turned(self.state, self, value)
        single = [v for v in operands if v not in turned]
        folds = needed_folds(self.state, [*single, *(v for kind, v in scalars if kind == "value")])
        with self.each_row(b.index(self.schedule.rows), clamp=True) as (row, at):
            self.folded = fold_all(self.state, self, folds, at)
            for value in single:
                self._pack(value, row, at)
            for key in scalars:
                tile = self._row_scalar(key, at)
                b.store(tile, self.state.row_vectors[key], [b.index(0), row], [-1, -1])
        self.folded = {}
        self._start_states()

    def _row_operands(self) -> list[Value]:
        """Row sides of contractions, without repeats."""
        out: dict[Value, None] = {}
        for op in self.info.products:
            out.setdefault(self.row_side(op)[0])
        return list(out)

    def row_side(self, op: s.Contract) -> tuple[Value, Value]:
        """(row side, inner side) of a contraction. Raises UnsupportedError if it has none."""
        for row, inner in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
            below = strip_repeat(self.info.made, row)
            parted = not self.info.varies(below) and not self.info.on_rows(inner)
            if parted and len(op.axes) == 1 and len(self.info.element(inner)) == 1:
                return below, inner
        raise UnsupportedError("a contraction of two values that both change along a row", op.loc)

    def pairs_for(self, op: s.Contract) -> bool:
        """True if the bf16 dot instruction can form this contraction: from memory as it lies, or
        from a block that was turned (turned_block.py)."""
        row, inner = self.row_side(op)
        below, casts = strip_casts(self.info, row)
        other, inner_casts = strip_casts(self.info, inner)
        source = self.info.made.get(other)
        known = self.info.element(other)[0].size.constant or 0
        if not (self.schedule.bf16_dot and casts and inner_casts and known % 2 == 0):
            return False
        sources = isinstance(source, s.Source) and isinstance(self.info.made.get(below), s.Source)
        if not sources or self.state.dtype(below) != BF16 or self.state.dtype(other) != BF16:
            return False
        assert isinstance(source, s.Source)
        buffer = self.state.buffers[source.tensor].type
        if (self.info.inner.name,) not in source.dims:
            return False
        last = [i for i, d in enumerate(source.dims) if d == (self.info.element(other)[0].name,)]
        unit = getattr(buffer, "unit", -1)
        return last == [unit] or self.state.turned_source(inner) is not None

    def _uses_pairs(self, value: Value) -> bool:
        ops = self.info.products
        return all(self.pairs_for(op) for op in ops if self.row_side(op)[0] is value)

    def _packed_scratch(self, value: Value) -> Value:
        axis = self.info.element(value)[0]
        length, rows = axis.size.constant or 0, self.schedule.rows
        if self._uses_pairs(value):
            dtype = self.state.dtype(strip_casts(self.info, value)[0])
            padded = round_up(length, 2 * self.schedule.lanes)
            return self.build.scratch([padded // 2, rows, 2], dtype, f"{value.hint}_packed")
        shape = [self.state.padded(axis), rows]
        if not self.schedule.rows_on_lanes:
            shape.reverse()
        return self.build.scratch(shape, F32, f"{value.hint}_packed")

    def _pack(self, value: Value, row: Value, at: dict[str, Value]) -> None:
        """Copies one row's vector: its axis becomes the outer dimension when rows lie on lanes."""
        b, axis = self.build, self.info.element(value)[0]
        target = self.state.packed[value]
        length = axis.size.constant or 0
        pairs = self._uses_pairs(value)
        below = strip_casts(self.info, value)[0] if pairs else value
        step = self.schedule.lanes * (2 if pairs else 1)
        layout = Layout(2).local(1, 1).spatial(1, self.schedule.lanes)
        if pairs:
            layout = layout.local(1, 2)
        with b.loop(b.index(0), b.index(length), step, hint="d") as loop:
            tile = self.at_point(below, {**at, axis.name: loop.counter}, layout)
            if not pairs and not self.schedule.rows_on_lanes:  # others end where the element does
                tile = cut_off(self.state, value, tile, loop.counter, layout, 1)
            if pairs:
                self._store_pairs(tile, target, loop.counter, row)
            elif self.schedule.rows_on_lanes:
                b.store(tile, target, [loop.counter, row], [1, 0])
            else:
                b.store(tile, target, [row, loop.counter], [0, 1])

    def _store_pairs(self, tile: Value, target: Value, at: Value, row: Value) -> None:
        from tilewright.ir.ops_tile import SplitPairs

        b = self.build
        pairs = b(SplitPairs, tile, hint="pairs")
        b.store(pairs, target, [b.div(at, 2), row, b.index(0)], [0, 1, 2])

    def _row_scalars(self) -> dict[RowKey, DType]:
        """Scalars per row that tiles need: values that do not change along the inner axis, and
        where
        each row of a source that does starts in memory."""
        out: dict[RowKey, DType] = {}
        for op in self.info.graph.body.ops:
            result = op.results[0]
            scalar = isinstance(op, s.Source) and not self.info.element(result)
            if scalar and self.info.varies(result) and self.info.on_rows(result):
                out["offset", result] = I64
            shown = isinstance(op, s.Sink) and self.info.per_position(op)
            if isinstance(op, s.Repeat) or not (self.info.in_block(result) or shown):
                continue
            for operand in op.operands:
                value = strip_repeat(self.info.made, operand)
                if self.info.is_row_scalar(value):
                    out["value", value] = self.state.dtype(value)
        return out

    def _row_scalar(self, key: RowKey, at: dict[str, Value]) -> Value:
        kind, value = key
        if kind == "value":
            return self.at_point(value, at, Layout(2))
        op = self.info.made[value]
        assert isinstance(op, s.Source)
        return self.build.splat(self.source_offset(op, at))

    def source_offset(self, op: s.Source, at: dict[str, Value]) -> Value:
        """Distance in elements from a buffer's start to a position (the inner axis at 0)."""
        from tilewright.ir.ops_tile import StrideOf

        b, buffer = self.build, self.state.buffers[op.tensor]
        at = {k: v for k, v in at.items() if k != self.info.inner.name}
        indices, _ = self.state.source_index(op, at)
        total = b.index(0)
        for dim, index in enumerate(indices):
            total = b.add(total, b.mul(index, b(StrideOf, buffer, dim=dim, hint="stride")))
        return total

    @contextmanager
    def each_row(self, count: Value, clamp: bool) -> Iterator[tuple[Value, dict[str, Value]]]:
        """A loop over the block's rows; rows past the last repeat it when ``clamp``."""
        b, state = self.build, self.state
        assert state.first_row is not None and state.row_total is not None
        with b.loop(b.index(0), count, 1, hint="row") as loop:
            here = b.add(state.first_row, loop.counter)
            if clamp:
                here = b.minimum(here, b.sub(state.row_total, 1))
            yield loop.counter, self.position(here)

    def position(self, row: Value) -> dict[str, Value]:
        """Positions on the grid's and the rows' axes of a row counted from the first of all."""
        return {**self.state.grid_at, **self.state.split_position(row, self.info.rows)}

    def _start_states(self) -> None:
        for op in self.info.graph.body.ops:
            if isinstance(op, s.Reduce | s.Scan):
                element = self.info.element(op.results[0])
                dtype = self.state.dtype(op.results[0])
                shape = self._state_shape(element)
                scratch = self.build.scratch(shape, dtype, f"{op.results[0].hint}_state")
                self.state.sums[op.results[0]] = scratch
                self._fill(scratch, shape, IDENTITY[op.kind], dtype)

    def _state_shape(self, element: tuple[Axis, ...]) -> list[int]:
        rows = self.schedule.rows
        if not element:
            return [1, rows]
        if len(element) > 1:
            raise UnsupportedError("a sum of matrices inside one kernel")
        if self.schedule.rows_on_lanes:
            return [element[0].size.constant or 0, rows]
        return [rows, round_up(element[0].size.constant or 0, self.schedule.lanes)]

    def _fill(self, scratch: Value, shape: list[int], number: float, dtype: DType) -> None:
        b, width = self.build, shape[1]
        lanes = min(width, self.schedule.lanes)
        layout = Layout(2).local(1, width // lanes).spatial(1, lanes)
        tile = b.filled(number, dtype, layout)
        with b.loop(b.index(0), b.index(shape[0]), 1) as loop:
            b.store(tile, scratch, [loop.counter, b.index(0)], [0, 1])

    # ---- one position: everything scalar except an element's axis on lanes

    def at_point(
        self,
        value: Value,
        at: dict[str, Value],
        layout: Layout,
        row: Value | None = None,
        memo: dict[Value, Value] | None = None,
        whole: bool = False,
    ) -> Value:
        """``value`` at one position of all loops; its element's axis runs along tile dimension 1
        from ``at[axis]``. ``row`` is the row within the block, for results of reductions.
        ``whole``: no element ends before the tile does."""

        def leaf(v: Value) -> Value | None:
            op = self.info.made.get(v)
            if v in self.folded:
                return self.folded[v]
            if isinstance(op, s.Source):
                return self._load_point(op, at, layout, whole)
            if isinstance(op, s.Gather):
                return load_gathered(self.state, op, at, layout, whole)
            if isinstance(op, s.Index):
                return index_at(self.state, op, at, layout, 1)
            if v in self.state.made_blocks:
                return self.state.made_blocks[v].point(at, layout)
            if isinstance(op, s.Roll) and op.x in self.state.made_blocks:
                return self.state.made_blocks[op.x].point(at, layout, op.shift)
            if isinstance(op, s.Roll):
                here = rolled(self.state, op, at, layout.shape[1])
                return self.at_point(op.x, here, layout, row, whole=whole)
            if isinstance(op, s.Reduce):
                assert row is not None
                return self._load_state(op, at, row, layout)
            return None

        return self.state.expression(value, leaf, {} if memo is None else memo)

    def _load_point(self, op: s.Source, at: dict[str, Value], layout: Layout, whole: bool) -> Value:
        element = self.info.element(op.result)
        indices, runs = self.state.source_index(op, at)
        name = element[0].name if element else ""
        shape = layout if element else Layout(2)
        dims = [1 if run and run == name else -1 for run in runs]
        bounds = []
        width = shape.shape[1]
        if element and not whole and self.state.may_end_within(element[0], width):
            end = self.state.limit(op, indices, at, name, self.build.size(element[0].size))
            bounds = [(1, "zero", end)]
        if width == 1:
            dims = [-1] * len(dims)
        buffer = self.state.buffers[op.tensor]
        return self.build.load(buffer, indices, dims, shape, bounds, hint=op.result.hint)

    def _load_state(self, op: s.Reduce, at: dict[str, Value], row: Value, layout: Layout) -> Value:
        b, scratch = self.build, self.state.sums[op.result]
        element = self.info.element(op.result)
        if not element:
            return b.load(scratch, [b.index(0), row], [-1, -1], Layout(2), hint=op.result.hint)
        here = at[element[0].name]
        if not self.schedule.rows_on_lanes:
            return b.load(scratch, [row, here], [-1, 1], layout, hint=op.result.hint)
        width, length = layout.shape[1], element[0].size.constant or 0
        bounds = [(1, "zero", b.index(length))] if length % width else []
        return b.load(scratch, [here, row], [1, -1], layout, bounds, hint=op.result.hint)

    # ---- epilogue

    def finish(self, sinks: list[s.Sink]) -> None:
        """Writes the results that come once per row."""
        for sink in [x for x in sinks if can_write_turned(self.state, x)]:
            write_turned(self.state, self, sink)
        sinks = [x for x in sinks if not can_write_turned(self.state, x)]
        if not sinks:
            return
        folds = needed_folds(self.state, [sink.x for sink in sinks])

        def store(row: Value, at: dict[str, Value]) -> None:
            self.folded = fold_all(self.state, self, folds, at, row)
            for sink in sinks:
                self.write(sink, row, at)

        self.leave(store)

    def leave(self, store: Callable[[Value, dict[str, Value]], None]) -> None:
        """Writes what ``store(row, at)`` writes of each row."""
        b, state = self.build, self.state
        assert state.first_row is not None and state.row_total is not None
        count = b.minimum(b.sub(state.row_total, state.first_row), self.schedule.rows)
        with self.each_row(count, clamp=False) as (row, at):
            store(row, at)

    def write(self, sink: s.Sink, row: Value, at: dict[str, Value]) -> None:
        """Writes one row's result, its element's axis on lanes."""
        b, element = self.build, self.info.element(sink.x)
        buffer = self.state.buffers[sink.result]
        if not element:
            tile = self.at_point(sink.x, at, Layout(2), row)
            indices, _ = self.state.source_index(sink, at)
            b.store(tile, buffer, indices, [-1] * len(indices))
            return
        if len(element) > 1:
            raise UnsupportedError("a result that is a matrix for every row", sink.loc)
        axis, lanes = element[0], self.schedule.lanes
        assert isinstance(sink.type, TensorType)
        end = b.whole(axis.size, lanes)
        with b.loop(b.index(0), end, lanes, hint=axis.name) as loop:
            self._write_lanes(sink, axis, row, {**at, axis.name: loop.counter}, whole=True)
        if not self.state.may_end_within(axis, lanes):
            return
        with b.when_less(end, b.size(axis.size)):
            self._write_lanes(sink, axis, row, {**at, axis.name: end}, whole=False)

    def _write_lanes(
        self, sink: s.Sink, axis: Axis, row: Value, at: dict[str, Value], whole: bool
    ) -> None:
        """Writes a vector of a row's result."""
        b, buffer, lanes = self.build, self.state.buffers[sink.result], self.schedule.lanes
        tile = self.at_point(sink.x, at, self.state.lane_layout(), row, whole=whole)
        indices, runs = self.state.source_index(sink, at)
        dims = [1 if run == axis.name and lanes > 1 else -1 for run in runs]
        bounds = []
        if not whole:
            bounds = [(1, self.state.limit(sink, indices, at, axis.name, b.size(axis.size)))]
        b.store(tile, buffer, indices, dims, bounds)


def strip_repeat(made: dict[Value, Op], value: Value) -> Value:
    """``value`` before it was repeated along the inner axis."""
    op = made.get(value)
    while isinstance(op, s.Repeat):
        value = op.x
        op = made.get(value)
    return value
