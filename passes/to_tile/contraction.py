"""Products: contractions inside an element, and vector-valued sums along the inner axis.

Rows on lanes: both are outer products, one side broadcast from memory, the other a vector of rows.
Rows in registers: the element's axis lies on lanes, both sides are read as they lie in memory;
what is
contracted is summed across lanes at the end, sixteen sums at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.state import LoweringState, round_up

MAX_UNROLLED = 16  # vectors of an element written out, beyond that a loop


class BlockLike(Protocol):
    """What products need to know of a block."""

    first: Value
    count: Value
    limit: Value
    masked: bool


class InnerOperand:
    """The side of a product that the rows share: read in place, or brought to f32 in scratch."""

    def __init__(self, state: LoweringState, rows: RowLowering, value: Value) -> None:
        self.state, self.rows, self.value = state, rows, value
        self.build, self.info = state.build, state.info
        self.axis = state.info.element(value)[0]
        self.source = self._direct_source()
        self.converted: Value | None = None
        if self.source is None and state.schedule.rows_on_lanes:
            shape = [state.schedule.inner_block, state.padded(self.axis)]
            self.converted = self.build.scratch(shape, F32, f"{value.hint}_block")

    def _direct_source(self) -> s.Source | None:
        op = self.info.made.get(self.value)
        inner = (self.info.inner.name,)
        if isinstance(op, s.Source) and self.state.dtype(self.value) == F32 and inner in op.dims:
            return op if (self.axis.name,) in op.dims else None
        return None

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Fills the converted copy for a block, in whole register tiles (the last ones
        repeated)."""
        if self.converted is None:
            return
        b, lanes = self.build, self.state.schedule.lanes
        tile = self.state.schedule.inner_tile
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
        offset: Value,
        element: Value,
        layout: Layout,
        dims: tuple[int, int],
        limit: Value | None,
    ) -> Value:
        """A tile: positions along tile dimension ``dims[0]``, elements along ``dims[1]`` (-1:
        one)."""
        b = self.build
        if self.source is None:
            assert self.converted is not None
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
        return b.load(buffer, indices, along, layout, bounds, hint=self.value.hint)


class Contraction:
    """Sums over an element's axis, one register tile of results at a time."""

    def __init__(self, state: LoweringState, rows: RowLowering) -> None:
        self.state, self.rows = state, rows
        self.build, self.schedule = state.build, state.schedule
        self.inner: dict[Value, InnerOperand] = {}
        for op in state.info.graph.body.ops:
            if isinstance(op, s.Contract) and not rows.pairs_for(op):
                self._operand(op)  # here, so that its scratch is known to all blocks

    def begin_block(self, first: Value, count: Value, limit: Value, masked: bool) -> None:
        """Converts the shared operands of a block where they cannot be read in place."""
        for op in self.state.info.graph.body.ops:
            if isinstance(op, s.Contract) and not self.rows.pairs_for(op):
                self._operand(op).begin_block(first, count, limit)

    def _operand(self, op: s.Contract) -> InnerOperand:
        _, value = self.rows.row_side(op)
        if value not in self.inner:
            self.inner[value] = InnerOperand(self.state, self.rows, value)
        return self.inner[value]

    def tile(self, op: s.Contract, at: Value, offset: Value, limit: Value | None) -> Value:
        """A register tile [positions, rows]; positions at or past ``limit`` repeat the last."""
        if not self.schedule.rows_on_lanes:
            return self._across_lanes(op, at, limit)
        if self.rows.pairs_for(op):
            return self._pairs(op, at, limit)
        return self._outer(op, at, offset, limit)

    def _outer(self, op: s.Contract, at: Value, offset: Value, limit: Value | None) -> Value:
        row, _ = self.rows.row_side(op)
        operand, packed = self._operand(op), self.state.packed[row]
        y, b = self.schedule, self.build
        a_layout = Layout(3).local(y.inner_tile, 1, 1).replicate(y.lanes)
        b_layout = row_tile_layout(self.state, 1)

        def step(acc: Value, d: Value) -> Value:
            a = operand.load(at, offset, d, a_layout, (0, 2), limit)
            rows = b.load(packed, [d, b.index(0)], [-1, 1], b_layout, hint="rows")
            return b(t.Dot, acc, a, rows, hint=op.result.hint)

        return self._in_chunks(operand.axis.size.constant or 0, step)

    def _in_chunks(self, length: int, step: Callable[[Value, Value], Value]) -> Value:
        """The sum over 0 … length, a chunk at a time: the error grows with a chunk's length
        plus the
        number of chunks."""
        y, b = self.schedule, self.build
        zero = b.filled(0.0, F32, self.state.tile_layout)
        chunk = y.sum_chunk
        if length <= chunk + chunk // 2:
            return unrolled(self.state, b.index(0), b.index(length), y.unroll, zero, step, length)
        whole = length // chunk * chunk
        with b.loop(b.index(0), b.index(whole), chunk, [zero], hint="chunk") as loop:
            end = b.add(loop.counter, chunk)
            part = unrolled(self.state, loop.counter, end, y.unroll, zero, step, chunk)
            loop.next = (b(m.Add, loop.carried[0], part, hint="total"),)
        total = loop.results[0]
        if length % chunk:
            lo, hi = b.index(whole), b.index(length)
            part = unrolled(self.state, lo, hi, y.unroll, zero, step, length - whole)
            total = b(m.Add, total, part, hint="total")
        return total

    def _pairs(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        row, inner = self.rows.row_side(op)
        packed, info = self.state.packed[row], self.state.info
        below, _ = strip_casts(info, inner)
        source = info.made[below]
        assert isinstance(source, s.Source)
        y, b = self.schedule, self.build
        axis = info.element(inner)[0]
        a_layout = Layout(3).local(y.inner_tile, 1, 1).replicate(y.lanes).local(1, 1, 2)
        b_layout = row_tile_layout(self.state, 2)
        buffer = self.state.buffers[source.tensor]

        def step(acc: Value, pair: Value) -> Value:
            here = {**self.state.grid_at, info.inner.name: at, axis.name: b.mul(pair, 2)}
            indices, runs = self.state.source_index(source, here)
            dims = [0 if r == info.inner.name else 2 if r == axis.name else -1 for r in runs]
            bounds = [(0, "clamp", limit)] if limit is not None else []
            a = b.load(buffer, indices, dims, a_layout, bounds, hint=inner.hint)
            rows = b.load(packed, [pair, b.index(0), b.index(0)], [-1, 1, 2], b_layout, hint="rows")
            return b(t.Dot, acc, a, rows, hint=op.result.hint)

        return self._in_chunks((axis.size.constant or 0) // 2, step)

    def _across_lanes(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        """Position by position, each read from end to end: memory is walked in order, as the
        hardware's prefetchers want it."""
        row, inner = self.rows.row_side(op)
        y, b, info = self.schedule, self.build, self.state.info
        axis = info.element(inner)[0]
        length = axis.size.constant or 0
        k_layout = Layout(3).local(1, 1, 1).spatial(1, 1, y.lanes)
        r_layout = Layout(3).local(1, y.rows, 1).spatial(1, 1, y.lanes)

        def step(acc: Value, d: Value, position: Value) -> Value:
            here = {**self.state.grid_at, info.inner.name: position, axis.name: d}
            where = {info.inner.name: -1, axis.name: 2}
            k = lanes_expression(self.state, inner, here, where, k_layout, length)
            if limit is None and y.prefetch:
                ahead = {**here, info.inner.name: b.add(position, y.prefetch)}
                prefetch_sources(self.state, inner, ahead, where, k_layout)
            rows = b.load(self.state.packed[row], [b.index(0), d], [1, 2], r_layout, hint="rows")
            return b(m.Fma, k, rows, acc, hint=op.result.hint)

        parts = []
        for number in range(y.inner_tile):
            position = b.add(at, number)
            if limit is not None:
                position = b.minimum(position, b.sub(limit, 1))
            acc = b.filled(0.0, F32, r_layout)
            if length <= MAX_UNROLLED * y.lanes:
                for start in range(0, length, y.lanes):
                    acc = step(acc, b.index(start), position)
            else:
                with b.loop(b.index(0), b.index(length), y.lanes, [acc], hint=axis.name) as loop:
                    loop.next = (step(loop.carried[0], loop.counter, position),)
                acc = loop.results[0]
            parts.append(acc)
        return b(t.ReduceToLanes, b(t.Stack, *parts, hint="sums"), hint=op.result.hint)


def row_tile_layout(state: LoweringState, packed: int) -> Layout:
    """[1, rows, packed]: rows on lanes."""
    y = state.schedule
    layout = Layout(3).local(1, y.rows // y.lanes, 1).spatial(1, y.lanes, 1)
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
    b, info = state.build, state.info
    element = info.element(value)[0].name

    def leaf(v: Value) -> Value | None:
        op = info.made.get(v)
        if isinstance(op, m.Const):
            return b.number(op.value, state.dtype(v), layout.rank)
        if not isinstance(op, s.Source):
            return None
        indices, runs = state.source_index(op, here)
        dims = [where.get(r, -1) for r in runs]
        bounds = []
        if length % layout.shape[where[element]]:
            bounds.append((where[element], "zero", b.index(length)))
        return b.load(state.buffers[op.tensor], indices, dims, layout, bounds, hint=v.hint)

    x = state.expression(value, leaf, {})
    return x if state.dtype(value) == F32 else b(m.Cast, x, dtype=F32, hint=x.hint)


def prefetch_sources(
    state: LoweringState,
    value: Value,
    here: dict[str, Value],
    where: dict[str, int],
    layout: Layout,
) -> None:
    """Asks for what ``lanes_expression`` would read at a position."""
    op = state.info.made.get(value)
    if isinstance(op, s.Source):
        indices, runs = state.source_index(op, here)
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

    ``length`` is hi - lo if it is known; then an exact multiple needs no rest.
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
        self.turned: Value | None = None

    def prepare(self, op: s.Reduce, scalar: Value, vector: Value) -> None:
        """Chooses the form and allocates scratch for one sum."""
        y, b = self.schedule, self.build
        if not y.rows_on_lanes:
            if self.turned is None:
                self.turned = b.scratch([1, y.rows], F32, "turned")
            return
        if self._can_pair(scalar, vector):
            self.pair_scalars.add(scalar)
            shape = [y.inner_block // 2, self.state.padded(self.state.info.element(vector)[0]), 2]
            self.pair_vectors[vector] = b.scratch(shape, BF16, f"{vector.hint}_pairs")
            return
        self.inner[vector] = InnerOperand(self.state, RowLowering(self.state), vector)

    def _can_pair(self, scalar: Value, vector: Value) -> bool:
        info, y = self.state.info, self.schedule
        below, casts = strip_casts(info, vector)
        source = info.made.get(below)
        _, rounding = strip_casts(info, scalar)
        narrow = any(getattr(c, "dtype", None) == BF16 for c in rounding)
        plain = isinstance(source, s.Source) and self.state.dtype(below) == BF16 and bool(casts)
        whole = y.inner_tile % 2 == 0 and y.inner_block % 2 == 0
        return y.bf16_dot and narrow and plain and whole

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Packs or converts the block's vectors."""
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
                    bounds.append((1, "zero", b.index(length)))
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
        layout = Layout(2).local(size, y.rows // y.lanes).spatial(1, y.lanes)
        packed = 2 if vector in self.pair_vectors else 1
        a_layout = Layout(3).local(size, 1, 1).replicate(y.lanes).local(1, 1, packed)
        b_layout = row_tile_layout(self.state, packed)

        def step(total: Value, at: Value) -> Value:
            if packed == 2:
                position = [at, start, b.index(0)]
                a = b.load(self.pair_vectors[vector], position, [-1, 0, 2], a_layout)
                rows = b.load(kept, [at, b.index(0), b.index(0)], [-1, 1, 2], b_layout)
            else:
                where = b.add(block.first, at)
                a = self.inner[vector].load(where, at, start, a_layout, (-1, 0), None)
                rows = b.load(kept, [at, b.index(0)], [-1, 1], b_layout)
            return b(t.Dot, total, a, rows, hint=op.result.hint)

        count = block.count if packed == 1 else b.div(b.add(block.count, 1), 2)
        known = None if block.masked else y.inner_block // packed
        acc = b.filled(0.0, F32, layout)
        acc = unrolled(self.state, b.index(0), count, y.unroll, acc, step, known)
        old = b.load(sums, [start, b.index(0)], [0, 1], layout, hint=op.result.hint)
        b.store(add_block(self.state, old, rescale, acc), sums, [start, b.index(0)], [0, 1])

    def _rows_in_registers(
        self, op: s.Reduce, kept: Value, vector: Value, rescale: Value | None, block: BlockLike
    ) -> None:
        b, y = self.build, self.schedule
        if rescale is not None:
            assert self.turned is not None
            b.store(rescale, self.turned, [b.index(0), b.index(0)], [0, 1])
        length = self.state.info.element(vector)[0].size.constant or 0
        vectors = round_up(length, y.lanes) // y.lanes
        width = min(vectors, y.element_tile)
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
            v = lanes_expression(self.state, vector, here, {axis.name: 1}, v_layout, bound)
            if not block.masked and row == 0 and y.prefetch:
                ahead = {**here, info.inner.name: b.add(here[info.inner.name], y.prefetch)}
                prefetch_sources(self.state, vector, ahead, {axis.name: 1}, v_layout)
            p = b.load(kept, [position, b.index(row)], [-1, 0], p_layout, hint="p")
            return b(m.Fma, p, v, total, hint=op.result.hint)

        known = None if block.masked else y.inner_block
        acc = b.filled(0.0, F32, layout)
        acc = unrolled(self.state, b.index(0), block.count, y.unroll, acc, step, known)
        old = b.load(sums, at, [0, 1], layout, hint=op.result.hint)
        factor = None
        if rescale is not None:
            assert self.turned is not None
            factor = b.load(
                self.turned, [b.index(0), b.index(row)], [-1, 0], p_layout, hint="rescale"
            )
        b.store(add_block(self.state, old, factor, acc), sums, at, [0, 1])
