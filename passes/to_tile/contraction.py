"""Contractions inside an element, one register tile of results at a time.

Rows on lanes: an outer product, one side broadcast from memory, the other a vector of rows. Rows in
registers: the element's axis lies on lanes, both sides are read as they lie in memory; what is
contracted is summed across lanes at the end, as many sums at a time as there are lanes.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.cached.info import cached_of
from tilewright.passes.to_tile.cached.scores import KeyScores
from tilewright.passes.to_tile.elements import cut_off
from tilewright.passes.to_tile.kernel_info import strip_casts
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.shared_operand import (
    InnerOperand,
    lanes_expression,
    prefetch_sources,
    row_tile_layout,
    shared_operand,
    unrolled,
)
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.turned_block import TurnedBlock

MAX_UNROLLED = 16  # vectors of an element written out, beyond that a loop


class Contraction:
    """Sums over an element's axis, one register tile of results at a time."""

    def __init__(self, state: LoweringState, rows: RowLowering) -> None:
        self.state, self.rows = state, rows
        self.build, self.schedule = state.build, state.schedule
        self.inner: dict[Value, InnerOperand] = {}
        self.cached: dict[s.Contract, KeyScores] = {}
        self.turned_blocks: dict[Value, TurnedBlock] = {}
        for op in state.info.products:  # here, so that scratch is known to all blocks
            if rows.pairs_for(op):
                self._allocate_pairs(op)
            else:
                self._operand(op)

    def begin_rows(self) -> None:
        """Products with cached keys want the rows as bytes."""
        if not self.schedule.positions_on_lanes:
            return
        for op in self.state.info.products:
            row, inner = self.rows.row_side(op)
            keys = cached_of(self.state.info, inner)
            if keys is None:
                continue
            self.cached[op] = KeyScores(self.state, keys, self.state.packed[row])
            self.cached[op].begin_rows()

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Converts the shared operands of a block where they cannot be read in place."""
        for scores in self.cached.values():
            scores.begin_block(first)
        for operand in self.inner.values():
            operand.begin_block(first, count, limit)
        for block in self.turned_blocks.values():
            block.fill(first, count, limit)

    def _allocate_pairs(self, op: s.Contract) -> None:
        _, value = self.rows.row_side(op)
        source = self.state.turned_source(value)
        if source is not None and value not in self.turned_blocks:
            self.turned_blocks[value] = TurnedBlock(self.state, value, source, pairs=True)

    def _operand(self, op: s.Contract) -> InnerOperand:
        _, value = self.rows.row_side(op)
        if value not in self.inner:
            self.inner[value] = shared_operand(self.state, self.rows, value)
        return self.inner[value]

    def tile(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        """A register tile [positions, rows]; positions at or past ``limit`` repeat the last."""
        if op in self.cached:
            return self.cached[op].tile(at, limit)
        if self.schedule.positions_on_lanes:
            return self._columns(op, at, limit)
        if not self.schedule.rows_on_lanes:
            return self._across_lanes(op, at, limit)
        if self.rows.pairs_for(op):
            return self._pairs(op, at, limit)
        return self._outer(op, at, limit)

    def _outer(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        row, _ = self.rows.row_side(op)
        operand, packed = self._operand(op), self.state.packed[row]
        y, b = self.schedule, self.build
        a_layout = Layout(3).local(y.inner_tile, 1, 1).replicate(y.lanes)
        b_layout = row_tile_layout(self.state, 1)

        def step(acc: Value, d: Value) -> Value:
            a = operand.load(at, d, a_layout, (0, 2), limit)
            rows = b.load(packed, [d, self.state.row_start], [-1, 1], b_layout, hint="rows")
            return b(t.Dot, acc, a, rows, hint=op.result.hint)

        return self._in_chunks(operand.axis.size.constant or 0, step)

    def _columns(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        """Terms one after another, a vector of columns of each: weights [terms, columns] are read
        as they lie in memory, once for all rows."""
        row, inner = self.rows.row_side(op)
        operand, packed = self._operand(op), self.state.packed[row]
        y, b, info = self.schedule, self.build, self.state.info
        of_columns = Layout(2).local(self.state.tile_positions // y.lanes, 1).spatial(y.lanes, 1)
        of_rows = Layout(2).local(1, y.rows).replicate(y.lanes)

        where = {info.inner.name: 0, operand.axis.name: -1}

        def step(acc: Value, d: Value) -> Value:
            columns = operand.load(at, d, of_columns, (0, -1), limit)
            if limit is None and y.prefetch:
                place = {info.inner.name: at, operand.axis.name: b.add(d, y.prefetch)}
                ahead = {**self.state.grid_at, **place}
                prefetch_sources(self.state, inner, ahead, where, of_columns)
            rows = b.load(packed, [b.index(0), d], [1, -1], of_rows, hint="rows")
            return b(m.Fma, columns, rows, acc, hint=op.result.hint)

        return self._in_chunks(operand.axis.size.constant or 0, step)

    def _in_chunks(self, length: int, step: Callable[[Value, Value], Value]) -> Value:
        """The sum over 0 … length, a chunk at a time: the error grows with a chunk's length plus
        the number of chunks."""
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

        def shared(pair: Value) -> Value:
            if inner in self.turned_blocks:
                return self.turned_blocks[inner].load(at, pair, a_layout, (0, -1), inner.hint)
            here = {**self.state.grid_at, info.inner.name: at, axis.name: b.mul(pair, 2)}
            indices, runs = self.state.source_index(source, here)
            dims = [0 if r == info.inner.name else 2 if r == axis.name else -1 for r in runs]
            bounds = [(0, "clamp", limit)] if limit is not None else []
            return b.load(buffer, indices, dims, a_layout, bounds, hint=inner.hint)

        def step(acc: Value, pair: Value) -> Value:
            a = shared(pair)
            where = [pair, self.state.row_start, b.index(0)]
            rows = b.load(packed, where, [-1, 1, 2], b_layout, hint="rows")
            return b(t.Dot, acc, a, rows, hint=op.result.hint)

        return self._in_chunks((axis.size.constant or 0) // 2, step)

    def _lies_apart(self, value: Value) -> bool:
        """Whether an element's neighbours are apart in memory, so that lanes are filled one by one:
        written out, that is so much text that compiling it takes a minute."""
        made, todo = self.state.info.made, [value]
        while todo:
            op = made.get(todo.pop())
            if isinstance(op, s.Source):
                kind = self.state.buffers[op.tensor].type
                assert isinstance(kind, BufferType)
                element = {a.name for a in self.state.info.element(op.result)}
                if element and not element & set(op.dims[kind.unit] if kind.unit >= 0 else ()):
                    return True
            elif op is not None:
                todo += op.operands
        return False

    def _across_lanes(self, op: s.Contract, at: Value, limit: Value | None) -> Value:
        """Position by position, each read from end to end: memory is walked in order, as the
        hardware's prefetchers want it."""
        row, inner = self.rows.row_side(op)
        y, b, info = self.schedule, self.build, self.state.info
        axis = info.element(inner)[0]
        length = axis.size.constant or 0
        operand = self._operand(op)
        k_layout = Layout(3).local(1, 1, 1).spatial(1, 1, y.lanes)
        r_layout = Layout(3).local(1, y.rows, 1).spatial(1, 1, y.lanes)

        def step(acc: Value, d: Value, position: Value) -> Value:
            here = {**self.state.grid_at, info.inner.name: position, axis.name: d}
            where = {info.inner.name: -1, axis.name: 2}
            if operand.in_scratch:
                k = operand.load(position, d, k_layout, (-1, 2), None)
            else:
                k = lanes_expression(self.state, inner, here, where, k_layout, length)
                k = cut_off(self.state, inner, k, d, k_layout, 2)
            if limit is None and y.prefetch and not operand.in_scratch:
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
            if length <= MAX_UNROLLED * y.lanes and not self._lies_apart(inner):
                for start in range(0, length, y.lanes):
                    acc = step(acc, b.index(start), position)
            else:
                with b.loop(b.index(0), b.index(length), y.lanes, [acc], hint=axis.name) as loop:
                    loop.next = (step(loop.carried[0], loop.counter, position),)
                acc = loop.results[0]
            parts.append(acc)
        return b(t.ReduceToLanes, b(t.Stack, *parts, hint="sums"), hint=op.result.hint)
