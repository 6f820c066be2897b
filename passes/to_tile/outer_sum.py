"""Vector-valued sums along the inner axis, such as probabilities times values."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.block_range import BlockLike
from tilewright.passes.to_tile.cached.info import cached_of
from tilewright.passes.to_tile.cached.sums import ValueSums
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.shared_operand import (
    InnerOperand,
    lanes_expression,
    prefetch_sources,
    row_tile_layout,
    shared_operand,
    unrolled,
)
from tilewright.passes.to_tile.state import LoweringState, round_up


def add_block(state: LoweringState, old: Value, rescale: Value | None, block: Value) -> Value:
    """old * rescale + block. A block's terms are summed by themselves first: the error then grows
    with the block's length plus the number of blocks, not with their product."""
    if rescale is None:
        return state.build(m.Add, old, block, hint=old.hint)
    return state.build(m.Fma, old, rescale, block, hint=old.hint)


class OuterSum:
    """Vector-valued sums along the inner axis: state[e] += sum over positions of scalar *
    vector[e]."""

    def __init__(self, state: LoweringState) -> None:
        self.state, self.build, self.schedule = state, state.build, state.schedule
        self.pair_scalars: set[Value] = set()
        self.pair_vectors: dict[Value, Value] = {}
        self.inner: dict[Value, InnerOperand] = {}
        self.cached: dict[Value, ValueSums] = {}
        self.turned: Value | None = None
        self.first: Value | None = None  # the position that the packed block starts with

    def prepare(self, op: s.Reduce, scalar: Value, vector: Value) -> None:
        """Chooses the form and allocates scratch for one sum."""
        y, b = self.schedule, self.build
        if not y.rows_on_lanes:
            if self.turned is None:
                self.turned = b.scratch([1, y.rows], F32, "turned")
            if remakes(self.state.info.graph):
                self.inner[vector] = shared_operand(self.state, RowLowering(self.state), vector)
                return
            cached = cached_of(self.state.info, vector)
            if cached is not None and vector not in self.cached:
                self.cached[vector] = ValueSums(self.state, cached)
            return
        if self._can_pair(scalar, vector):
            self.pair_scalars.add(scalar)
            shape = [y.inner_block // 2, self.state.padded(self.state.info.element(vector)[0]), 2]
            self.pair_vectors[vector] = b.scratch(shape, BF16, f"{vector.hint}_pairs")
            return
        self.inner[vector] = shared_operand(self.state, RowLowering(self.state), vector)

    def _can_pair(self, scalar: Value, vector: Value) -> bool:
        info, y = self.state.info, self.schedule
        below, casts = strip_casts(info, vector)
        source = info.made.get(below)
        _, rounding = strip_casts(info, scalar)
        narrow = any(getattr(c, "dtype", None) == BF16 for c in rounding)
        plain = isinstance(source, s.Source) and self.state.dtype(below) == BF16 and bool(casts)
        if not isinstance(source, s.Source) or (info.inner.name,) not in source.dims:
            return False
        whole = y.inner_tile % 2 == 0 and y.inner_block % 2 == 0
        return y.bf16_dot and narrow and plain and whole

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Packs or converts the block's vectors."""
        self.first = first
        for operand in self.inner.values():
            operand.begin_block(first, count, limit)
        for vector, scratch in self.pair_vectors.items():
            self._pack_pairs(vector, scratch, first, count, limit)

    def _pack_pairs(
        self, vector: Value, scratch: Value, first: Value, count: Value, limit: Value
    ) -> None:
        b, info, lanes = self.build, self.state.info, self.schedule.lanes
        below, _ = strip_casts(info, vector)
        source = info.made[below]
        assert isinstance(source, s.Source)
        axis = info.element(vector)[0]
        length = axis.size.constant or 0
        layout = Layout(2).local(2, 1).spatial(1, lanes)
        with b.loop(b.index(0), b.div(b.add(count, 1), 2), 1, hint="pair") as pair:
            at = b.add(first, b.mul(pair.counter, 2))
            with b.loop(b.index(0), b.index(length), lanes, hint=axis.name) as loop:
                here = {**self.state.grid_at, info.inner.name: at, axis.name: loop.counter}
                indices, runs = self.state.source_index(source, here)
                dims = [0 if r == info.inner.name else 1 if r == axis.name else -1 for r in runs]
                bounds = [(0, "zero", limit)]
                if length % lanes:
                    end = self.state.limit(source, indices, here, axis.name, b.index(length))
                    bounds.append((1, "zero", end))
                x = b.load(self.state.buffers[source.tensor], indices, dims, layout, bounds)
                packed = b(t.PackPairs, x, dtype=BF16, hint="packed")
                b.store(packed, scratch, [pair.counter, loop.counter, b.index(0)], [0, 1, 2])

    def accumulate(
        self,
        op: s.Reduce,
        kept: Value | None,
        pairs: Value | None,
        vector: Value,
        rescale: Value | None,
        block: BlockLike,
    ) -> None:
        """Adds a block's terms to the state, after rescaling it."""
        if self.schedule.rows_on_lanes:
            use = pairs if vector in self.pair_vectors else kept
            assert use is not None
            self._rows_on_lanes(op, use, vector, rescale, block)
        else:
            assert kept is not None
            self._rows_in_registers(op, kept, vector, rescale, block)

    def _rows_on_lanes(
        self, op: s.Reduce, kept: Value, vector: Value, rescale: Value | None, block: BlockLike
    ) -> None:
        b, tile = self.build, self.schedule.element_tile
        length = self.state.info.element(vector)[0].size.constant or 0
        whole = length // tile * tile
        if whole:
            with b.loop(b.index(0), b.index(whole), tile, hint="e") as loop:
                self._element_tile(op, kept, vector, rescale, block, loop.counter, tile)
        if length % tile:
            start = b.index(whole)
            self._element_tile(op, kept, vector, rescale, block, start, length % tile)

    def _element_tile(
        self,
        op: s.Reduce,
        kept: Value,
        vector: Value,
        rescale: Value | None,
        block: BlockLike,
        start: Value,
        size: int,
    ) -> None:
        b, y, sums = self.build, self.schedule, self.state.sums[op.result]
        layout = Layout(2).local(size, self.state.tile_rows // y.lanes).spatial(1, y.lanes)
        row = self.state.row_start
        packed = 2 if vector in self.pair_vectors else 1
        assert self.first is not None
        packed_from = b.div(b.sub(block.first, self.first), 2) if packed == 2 else b.index(0)
        a_layout = Layout(3).local(size, 1, 1).replicate(y.lanes).local(1, 1, packed)
        b_layout = row_tile_layout(self.state, packed)

        def step(total: Value, at: Value) -> Value:
            if packed == 2:
                position = [b.add(packed_from, at), start, b.index(0)]
                a = b.load(self.pair_vectors[vector], position, [-1, 0, 2], a_layout)
                rows = b.load(kept, [at, row, b.index(0)], [-1, 1, 2], b_layout)
            else:
                where = b.add(block.first, at)
                a = self.inner[vector].load(where, start, a_layout, (-1, 0), None)
                rows = b.load(kept, [at, row], [-1, 1], b_layout)
            return b(t.Dot, total, a, rows, hint=op.result.hint)

        count = block.count if packed == 1 else b.div(b.add(block.count, 1), 2)
        known = None if block.masked else self.state.unit // packed
        acc = b.filled(0.0, F32, layout)
        acc = unrolled(self.state, b.index(0), count, y.unroll, acc, step, known)
        old = b.load(sums, [start, row], [0, 1], layout, hint=op.result.hint)
        b.store(add_block(self.state, old, rescale, acc), sums, [start, row], [0, 1])

    def _rows_in_registers(
        self, op: s.Reduce, kept: Value, vector: Value, rescale: Value | None, block: BlockLike
    ) -> None:
        b, y = self.build, self.schedule
        if rescale is not None:
            assert self.turned is not None
            b.store(rescale, self.turned, [b.index(0), b.index(0)], [0, 1])
        if vector in self.cached:
            whole = Layout(2).local(y.rows, 1).replicate(y.lanes)
            factor = None if rescale is None else self._turned(0, whole)
            self.cached[vector].accumulate(op, kept, factor, block)
            return
        length = self.state.info.element(vector)[0].size.constant or 0
        vectors = round_up(length, y.lanes) // y.lanes
        width = min(vectors, y.element_tile)
        if self._in_scratch(vector):  # near enough: rows share what is read
            width = min(width, max(1, y.element_tile // y.rows))
        height = max(1, y.element_tile // width)
        for row in range(0, y.rows, height):
            for start in range(0, vectors, width):
                tile = (min(height, y.rows - row), min(width, vectors - start))
                self._element_vectors(op, kept, vector, rescale, block, (row, start), tile)

    def _element_vectors(
        self,
        op: s.Reduce,
        kept: Value,
        vector: Value,
        rescale: Value | None,
        block: BlockLike,
        corner: tuple[int, int],
        tile: tuple[int, int],
    ) -> None:
        """Sums of some rows (registers) by whole vectors of the element, as many as registers hold:
        all of an element first, so that each pass walks memory in order."""
        b, y, info = self.build, self.schedule, self.state.info
        sums, axis = self.state.sums[op.result], info.element(vector)[0]
        (row, first), (height, width) = corner, tile
        start = first * y.lanes
        layout = Layout(2).local(height, width).spatial(1, y.lanes)
        at = [b.index(row), b.index(start)]
        v_layout = self.state.lane_layout(width)
        p_layout = Layout(2).local(height, 1).replicate(y.lanes)
        length = axis.size.constant or 0
        whole = start + width * y.lanes <= length

        def step(total: Value, position: Value) -> Value:
            here = {
                **self.state.grid_at,
                info.inner.name: b.add(block.first, position),
                axis.name: b.index(start),
            }
            bound = width * y.lanes if whole else length
            if self._in_scratch(vector):
                v = self.inner[vector].load(
                    here[info.inner.name], here[axis.name], v_layout, (-1, 1), None
                )
            else:
                v = lanes_expression(self.state, vector, here, {axis.name: 1}, v_layout, bound)
            ahead_too = not block.masked and row == 0 and not self._in_scratch(vector)
            if ahead_too and y.prefetch:
                ahead = {**here, info.inner.name: b.add(here[info.inner.name], y.prefetch)}
                prefetch_sources(self.state, vector, ahead, {axis.name: 1}, v_layout)
            where, dims = self.state.kept_at(position, b.index(row)), self.state.kept_dims(-1, 0)
            p = b.load(kept, where, dims, p_layout, hint="p")
            return b(m.Fma, p, v, total, hint=op.result.hint)

        known = None if block.masked else self.state.unit
        acc = b.filled(0.0, F32, layout)
        acc = unrolled(self.state, b.index(0), block.count, y.unroll, acc, step, known)
        old = b.load(sums, at, [0, 1], layout, hint=op.result.hint)
        factor = None if rescale is None else self._turned(row, p_layout)
        b.store(add_block(self.state, old, factor, acc), sums, at, [0, 1])

    def _in_scratch(self, vector: Value) -> bool:
        return vector in self.inner and self.inner[vector].in_scratch

    def _turned(self, row: int, layout: Layout) -> Value:
        """The factors of some rows from ``row`` on, each in all lanes."""
        b = self.build
        assert self.turned is not None
        return b.load(self.turned, [b.index(0), b.index(row)], [-1, 0], layout, hint="rescale")
