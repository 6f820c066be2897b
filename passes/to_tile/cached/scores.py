"""Products of a few queries with cached keys: 8-bit dot products, sixteen keys side by side.

    sum_d q_d (c_d - z) s  =  s (sum_d q_d c_d  -  z sum_d q_d)        s, z of a token (and group)
    sum_d q_d (c_d - z_d) s_d  =  sum_d (q_d s_d) c_d  -  sum_d (q_d s_d) z_d        of a channel

so that scales and zeros cost something once per key, or once per block, and not once per code.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, U8
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import QUAD
from tilewright.passes.to_tile.cached.fixed_point import DIGITS, FixedPoint, Stretch
from tilewright.passes.to_tile.cached.info import CacheReader
from tilewright.passes.to_tile.lowbit.byte_codes import byte_offset
from tilewright.passes.to_tile.lowbit.unpack import emit_moves, quad_moves
from tilewright.passes.to_tile.state import LoweringState

UNROLLED = 16  # quads of codes written out, beyond that a loop
CHAINS = 8  # sums that are under way at once, lest each dot product wait for the one before


class KeyScores:
    """One contraction of packed rows with cached keys."""

    def __init__(self, state: LoweringState, op: CachedStream, rows: Value) -> None:
        self.state, self.b, self.y = state, state.build, state.schedule
        self.reader, self.form, self.rows = CacheReader(state, op), op.form, rows
        self.offset = byte_offset(op.bits, state.schedule.signed_bytes)
        self.zero = op.zero - self.offset
        length = self.form.packing.chunks(self.form.width) * self.form.packing.chunk
        y = self.y
        self.bytes = FixedPoint(self.b, y.rows, y.lanes, length, "q")
        self.sums: list[Value] = []  # of each group's numbers, or what zeros take off

    @property
    def groups(self) -> int:
        return self.form.channel_groups if self.form.by == "token" else 1

    def _used(self, group: int) -> int:
        """Channels of a group."""
        width = self.form.width
        size = self.form.packing.group
        return min(size, width - group * size)

    def begin_rows(self) -> None:
        """The rows as bytes, unless scales differ from block to block."""
        if self.form.by == "token":
            self.sums = self.bytes.fill([self._stretch(g) for g in range(self.groups)])

    def _stretch(self, group: int) -> Stretch:
        b, p = self.b, self.form.packing
        start, used = group * p.group, self._used(group)
        first, stop = b.index(group * p.padded_group), b.index(used)
        return Stretch(lambda at: self._row_tile(start, at, start + used), stop, first)

    def _row_tile(self, start: int, at: Value, end: int) -> Value:
        """[rows, lanes] of the packed rows."""
        b = self.b
        bounds = [(1, "zero", b.index(end))] if (end - start) % self.y.lanes else []
        where = [b.index(0), b.add(at, start)]
        return b.load(self.rows, where, [0, 1], self.bytes.layout, bounds, hint="q")

    def begin_block(self, first: Value) -> None:
        """Scales by channel go into the rows: they are the same for a block's tokens."""
        if self.form.by == "token":
            return
        b, reader, width = self.b, self.reader, self.form.width
        group = b.div(first, self.form.group)
        layout = Layout(2).spatial(1, self.y.lanes)
        end = b.index(width) if width % self.y.lanes else None

        def scaled(at: Value) -> Value:
            scale = reader.beside(reader.scales, group, at, layout, 1, end)
            return b(m.Mul, self._row_tile(0, at, width), scale, hint="q")

        def zero(at: Value) -> Value:
            zeros = reader.zeros
            if zeros is None:
                return b.number(float(self.zero), F32)
            found = reader.beside(zeros, group, at, layout, 1, end)
            return b(m.Sub, found, b.number(float(self.offset), F32), hint="zero")

        stretch = Stretch(scaled, b.index(width), b.index(0), zero)
        self.sums = self.bytes.fill([stretch])

    def tile(self, at: Value, limit: Value | None) -> Value:
        """[positions, rows] from position ``at``, a multiple of the lanes."""
        b = self.b
        total: Value | None = None
        for group in range(self.groups):
            part = self._part(group, at, limit)
            total = part if total is None else b(m.Add, total, part, hint="scores")
        assert total is not None and self.bytes.step is not None
        total = b(m.Mul, total, self.bytes.step, hint="scores")
        return b(View, total, dtype=F32, layout=self.state.tile_layout, hint="scores")

    def _part(self, group: int, at: Value, limit: Value | None) -> Value:
        """[rows, lanes]: one group's sum in steps of the rows' bytes."""
        b, reader = self.b, self.reader
        total = self.bytes.joined(self._dots(group, at))
        if self.form.by == "channel":
            return b(m.Sub, total, self.sums[0], hint="sum")
        column = b.index(group)
        layout = Layout(2).spatial(1, self.y.lanes)
        zero = b.number(float(self.zero), F32)
        if reader.zeros is not None:
            zero = reader.beside(reader.zeros, column, at, layout, 1, limit)
            zero = b(m.Sub, zero, b.number(float(self.offset), F32), hint="zero")
        off = b(m.Mul, self.sums[group], zero, hint="off")
        scale = reader.beside(reader.scales, column, at, layout, 1, limit)
        return b(m.Mul, b(m.Sub, total, off, hint="sum"), scale, hint="sum")

    def _dots(self, group: int, at: Value) -> list[Value]:
        """[rows, lanes] in i32 for each digit: products with the codes of a group."""
        b, p = self.b, self.form.packing
        layout = Layout(2).local(self.y.rows, 1).spatial(1, self.y.lanes)
        quads = -(-self._used(group) // QUAD)
        first, per_chunk = group * p.padded_group // QUAD, p.chunk // QUAD
        chains = max(1, min(4, CHAINS // (DIGITS * self.y.rows)))
        sums = [x for _ in range(chains) for x in self.bytes.zero_sums(layout)]
        step = max(UNROLLED, per_chunk)
        whole = quads // step * step if quads > step and not first % per_chunk else 0
        if whole:
            with b.loop(b.index(0), b.index(whole // per_chunk), step // per_chunk, sums) as loop:
                chunk = b.add(loop.counter, first // per_chunk)
                loop.next = tuple(self._quads(at, chunk, range(step), list(loop.carried)))
            sums = list(loop.results)
        start, skipped = divmod(first + whole, per_chunk)
        rest = range(skipped, skipped + quads - whole)
        sums = self._quads(at, b.index(start), rest, sums)
        for other in range(DIGITS, len(sums), DIGITS):
            pairs = zip(sums[:DIGITS], sums[other : other + DIGITS], strict=True)
            sums[:DIGITS] = [b(m.Add, x, y, hint="sum") for x, y in pairs]
        return sums[:DIGITS]

    def _quads(self, at: Value, chunk: Value, quads: range, sums: list[Value]) -> list[Value]:
        """Adds the products of some quads, counted from the start of a chunk, to the sums."""
        b, p = self.b, self.form.packing
        codes = Layout(3).spatial(1, self.y.lanes, 1).local(1, 1, QUAD)
        words: list[Value] = []
        held = -1
        first = b.mul(chunk, p.chunk)
        for number, quad in enumerate(quads):
            ahead, unit = divmod(quad, p.chunk // QUAD)
            if ahead != held:
                held, words = ahead, self._words(at, b.add(chunk, ahead))
            code = emit_moves(b, words, quad_moves(p, unit))
            code = b(View, code, dtype=U8, layout=codes, hint="codes")
            here = b.add(first, quad * QUAD)
            chain = number * DIGITS % len(sums)
            given = {"b_bits": p.bits, "b_offset": self.offset}
            for digit in range(DIGITS):
                x = self.bytes.load(digit, here)
                where = chain + digit
                sums[where] = b(t.Dot, sums[where], x, code, hint="sum", **given)
        return sums

    def _words(self, at: Value, chunk: Value) -> list[Value]:
        """[1, lanes] for each word of a chunk."""
        b, p, lanes = self.b, self.form.packing, self.form.packing.lanes
        block, lane = b.div(at, lanes), b.mod(at, lanes)
        layout, found = Layout(2).spatial(1, self.y.lanes), []
        for word in range(p.words):
            column = b.mul(b.add(b.mul(chunk, p.words), word), lanes)
            where = [*self.reader.lead(), block, b.add(column, lane)]
            found.append(b.load(self.reader.words, where, [-1, -1, -1, 1], layout, hint="w"))
            where[2] = b.add(block, self.y.inner_block // lanes)
            b.prefetch(self.reader.words, where, [-1, -1, -1, 1], layout)
        return found
