"""Sums of cached values weighed by a few rows: 8-bit dot products, channels side by side.

    sum_m p_m (c_m - z_m) s_m  =  sum_m (p_m s_m) c_m  -  sum_m (p_m s_m) z_m       s, z of a token
    sum_m p_m (c_m - z) s  =  s (sum_m p_m c_m  -  z sum_m p_m)                     of a channel

Weights of a block become bytes, with the tokens' scales in them, and four tokens are added at once.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, U8
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import QUAD
from tilewright.passes.to_tile.block_range import BlockLike
from tilewright.passes.to_tile.cached.fixed_point import DIGITS, FixedPoint, Stretch
from tilewright.passes.to_tile.cached.info import CacheReader
from tilewright.passes.to_tile.lowbit.byte_codes import byte_offset
from tilewright.passes.to_tile.lowbit.unpack import emit_moves, quad_moves
from tilewright.passes.to_tile.state import LoweringState, round_up

STEP = 32  # tokens whose codes are unpacked in one turn of the loop


class ValueSums:
    """One vector-valued sum of cached values."""

    def __init__(self, state: LoweringState, op: CachedStream) -> None:
        self.state, self.b, self.y = state, state.build, state.schedule
        self.reader, self.form = CacheReader(state, op), op.form
        self.offset = byte_offset(op.bits, state.schedule.signed_bytes)
        self.zero = op.zero - self.offset
        y = self.y
        self.bytes = FixedPoint(self.b, y.rows, y.lanes, y.inner_block, "p")

    def accumulate(self, op: s.Reduce, kept: Value, factor: Value | None, block: BlockLike) -> None:
        """Adds a block's terms; ``factor`` [rows, 1] rescales what was there."""
        b, form = self.b, self.form
        whole = b.mul(b.div(b.add(block.count, STEP - 1), STEP), STEP)
        groups = form.channel_groups if form.by == "token" else 1
        size = form.group if groups > 1 else form.width
        for group in range(groups):
            off = self.bytes.fill([self._weights(kept, group, block, whole)])[0]
            start = group * size
            end = min(start + size, form.width)
            self._strips(op, (start, round_up(end, self.y.lanes)), whole, off, factor, block)

    def _weights(self, kept: Value, group: int, block: BlockLike, whole: Value) -> Stretch:
        """A block's weights, times the tokens' scales if they have some."""
        b, reader, lanes = self.b, self.reader, self.y.lanes
        layout = Layout(2).spatial(1, lanes)
        column, end = b.index(group), b.add(block.first, block.count)
        limit = end if block.masked else None
        bounds = [(1, "zero", block.count)] if block.masked else []

        def weight(at: Value) -> Value:
            p = b.load(kept, [b.index(0), at], [0, 1], self.bytes.layout, bounds, hint="p")
            if self.form.by == "channel":
                return p
            here = b.add(block.first, at)
            scale = reader.beside(reader.scales, column, here, layout, 1, limit)
            return b(m.Mul, p, scale, hint="p")

        def zero(at: Value) -> Value:
            if reader.zeros is None:
                return b.number(float(self.zero), F32)
            here = b.add(block.first, at)
            found = reader.beside(reader.zeros, column, here, layout, 1, limit)
            return b(m.Sub, found, b.number(float(self.offset), F32), hint="zero")

        plain = self.form.by == "channel"
        return Stretch(weight, whole, b.index(0), None if plain else zero)

    def _strips(
        self,
        op: s.Reduce,
        span: tuple[int, int],
        whole: Value,
        off: Value,
        factor: Value | None,
        block: BlockLike,
    ) -> None:
        """All channels of a group, as many vectors at a time as registers hold sums of."""
        b, lanes = self.b, self.y.lanes
        (start, end), room = span, (24 if lanes == 16 else 12)
        width = max(1, min((end - start) // lanes, room // (DIGITS * self.y.rows)))
        step = width * lanes
        even = start + (end - start) // step * step
        with b.loop(b.index(start), b.index(even), step, hint="e") as loop:
            self._strip(op, loop.counter, width, whole, off, factor, block)
        if even < end:
            rest = (end - even) // lanes
            self._strip(op, b.index(even), rest, whole, off, factor, block)

    def _strip(
        self,
        op: s.Reduce,
        at: Value,
        width: int,
        whole: Value,
        off: Value,
        factor: Value | None,
        block: BlockLike,
    ) -> None:
        b, y, p = self.b, self.y, self.form.packing
        layout = Layout(2).local(y.rows, width).spatial(1, y.lanes)
        start = b.div(block.first, p.chunk)
        with b.loop(b.index(0), whole, STEP, self.bytes.zero_sums(layout), hint="m") as loop:
            sums = list(loop.carried)
            for quad in range(STEP // QUAD):
                chunk, unit = divmod(quad, p.chunk // QUAD)
                if not unit:
                    row = b.add(start, b.add(b.div(loop.counter, p.chunk), chunk))
                    words = self._words(row, at, width)
                sums = self._add_quad(sums, words, unit, b.add(loop.counter, QUAD * quad), width)
            loop.next = tuple(sums)
        total = self.bytes.joined(list(loop.results))
        total = self._finished(total, off, at, width, block)
        memory, where = self.state.sums[op.result], [b.index(0), at]
        old = b.load(memory, where, [0, 1], layout, hint=op.result.hint)
        new = b(m.Add, old, total) if factor is None else b(m.Fma, old, factor, total)
        b.store(new, memory, where, [0, 1])

    def _words(self, row: Value, at: Value, width: int) -> list[Value]:
        """[1, width * lanes] for each word of a chunk of tokens."""
        b, form = self.b, self.form
        layout, found = self.state.lane_layout(width), []
        for word in range(form.packing.words):
            column = b.add(at, word * form.padded)
            where = [*self.reader.lead(), row, column]
            found.append(b.load(self.reader.words, where, [-1, -1, -1, 1], layout, hint="w"))
            where[2] = b.add(row, self.y.inner_block // form.packing.chunk)
            b.prefetch(self.reader.words, where, [-1, -1, -1, 1], layout)
        return found

    def _add_quad(
        self, sums: list[Value], words: list[Value], unit: int, at: Value, width: int
    ) -> list[Value]:
        """Adds four tokens' products with each digit."""
        b, p = self.b, self.form.packing
        layout = Layout(3).local(1, width, 1).spatial(1, self.y.lanes, 1).local(1, 1, QUAD)
        code = emit_moves(b, words, quad_moves(p, unit))
        code = b(View, code, dtype=U8, layout=layout, hint="codes")
        given = {"b_bits": p.bits, "b_offset": self.offset}
        return [
            b(t.Dot, total, self.bytes.load(digit, at), code, hint="sum", **given)
            for digit, total in enumerate(sums)
        ]

    def _finished(self, total: Value, off: Value, at: Value, width: int, block: BlockLike) -> Value:
        """The strip's sums without the zeros' part, times steps and scales."""
        b, reader, form = self.b, self.reader, self.form
        assert self.bytes.step is not None
        if form.by == "token":
            total = b(m.Sub, total, off, hint="sum")
            return b(m.Mul, total, self.bytes.step, hint="sum")
        layout, group = self.state.lane_layout(width), b.div(block.first, form.group)
        end = b.index(form.width) if form.width % self.y.lanes else None
        zero = b.number(float(self.zero), F32)
        if reader.zeros is not None:
            zero = reader.beside(reader.zeros, group, at, layout, 1, end)
            zero = b(m.Sub, zero, b.number(float(self.offset), F32), hint="zero")
        total = b(m.Sub, total, b(m.Mul, off, zero, hint="off"), hint="sum")
        scale = reader.beside(reader.scales, group, at, layout, 1, end)
        return b(m.Mul, b(m.Mul, total, self.bytes.step, hint="sum"), scale, hint="sum")
