"""A block of cached keys or values as f32 in scratch, unpacked once for all rows of a work item.

Keys lie [channel, position] there and values [position, channel]: as codes come out of a vector of
words, neighbours side by side.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.passes.to_tile.cached.info import CacheReader
from tilewright.passes.to_tile.lowbit.unpack import code_moves, emit_moves
from tilewright.passes.to_tile.state import LoweringState, round_up

UNIT = 32  # positions are unpacked in whole chunks of any width


class UnpackedBlock:
    """Scratch for a block of one cache."""

    def __init__(self, state: LoweringState, op: CachedStream) -> None:
        self.state, self.b, self.y = state, state.build, state.schedule
        self.reader, self.form, self.zero = CacheReader(state, op), op.form, op.zero
        p, lanes = self.form.packing, self.y.lanes
        self.layout = Layout(2).spatial(1, lanes)
        self.along = 1 if lanes > 1 else -1
        channels = round_up(self.form.width, max(lanes, 1))
        if self.form.keys:
            # a group's padding is written where the next group comes, before it
            shape = [channels + p.chunk, self.y.inner_block]
        else:
            shape = [self.y.inner_block, round_up(channels, lanes)]
        self.memory = self.b.scratch(shape, F32, "unpacked")

    def fill(self, first: Value, count: Value, limit: Value) -> None:
        """Positions ``first`` (a multiple of 32) and ``count`` more; those at or past ``limit`` are
        finite."""
        b = self.b
        whole = b.mul(b.div(b.add(count, UNIT - 1), UNIT), UNIT)
        if self.form.keys:
            self._keys(first, whole, limit)
        else:
            self._values(first, whole, limit)

    def load(
        self, offset: Value, element: Value, dims: tuple[int, int], layout: Layout, hint: str
    ) -> Value:
        """Positions along tile dimension ``dims[0]``, channels along ``dims[1]``."""
        where, along = [offset, element], list(dims)
        if self.form.keys:
            where, along = where[::-1], along[::-1]
        return self.b.load(self.memory, where, along, layout, hint=hint)

    # ---- keys: a word has codes of one token, tokens lie on lanes

    def _keys(self, first: Value, whole: Value, limit: Value) -> None:
        b, p = self.b, self.form.packing
        with b.loop(b.index(0), whole, self.y.lanes, hint="position") as loop:
            at = b.add(first, loop.counter)
            row, lane = b.div(at, p.lanes), b.mod(at, p.lanes)
            with b.loop(b.index(0), b.index(p.chunks(self.form.width)), 1, hint="chunk") as chunk:
                words = self._key_words(row, lane, chunk.counter)
                for number in range(p.groups_per_chunk):
                    self._key_group(words, chunk.counter, number, at, loop.counter, limit)

    def _key_words(self, row: Value, lane: Value, chunk: Value) -> list[Value]:
        b, p, found = self.b, self.form.packing, []
        for word in range(p.words):
            column = b.mul(b.add(b.mul(chunk, p.words), word), p.lanes)
            where = [*self.reader.lead(), row, b.add(column, lane)]
            dims = [-1, -1, -1, self.along]
            found.append(b.load(self.reader.words, where, dims, self.layout, hint="w"))
        return found

    def _key_group(
        self,
        words: list[Value],
        chunk: Value,
        number: int,
        at: Value,
        offset: Value,
        limit: Value,
    ) -> None:
        """The codes of a chunk that belong to its group ``number``."""
        b, p, form = self.b, self.form.packing, self.form
        several = p.groups_per_chunk > 1
        per_group = max(1, p.padded_group // p.chunk)
        if several:
            group = b.add(b.mul(chunk, p.groups_per_chunk), number)
            inside, codes = b.index(0), range(p.padded_group)
        else:
            group = b.div(chunk, per_group)
            inside, codes = b.mul(b.mod(chunk, per_group), p.chunk), range(p.chunk)
        start = b.add(b.mul(group, p.group), inside)
        here = b.minimum(start, form.width)  # groups of padding alone go where padding goes
        token = self._token_factors(b.minimum(group, form.channel_groups - 1), at, limit)
        for code in codes:
            moved = number * p.padded_group + code
            x = emit_moves(b, words, code_moves(p, moved))
            channel = b.add(here, code)
            scale, zero = token or self._channel_factors(at, b.minimum(channel, form.width - 1))
            value = self._value(x, scale, zero)
            b.store(value, self.memory, [channel, offset], [-1, self.along])

    # ---- values: a word has codes of one channel, channels lie on lanes

    def _values(self, first: Value, whole: Value, limit: Value) -> None:
        b, p, form = self.b, self.form.packing, self.form
        with b.loop(b.index(0), whole, p.chunk, hint="position") as loop:
            row = b.div(b.add(first, loop.counter), p.chunk)
            end = b.index(round_up(form.width, self.y.lanes))
            with b.loop(b.index(0), end, self.y.lanes, hint="e") as e:
                words = []
                for word in range(p.words):
                    column = b.add(e.counter, word * form.padded)
                    where = [*self.reader.lead(), row, column]
                    dims = [-1, -1, -1, self.along]
                    words.append(b.load(self.reader.words, where, dims, self.layout, hint="w"))
                for code in range(p.chunk):
                    offset = b.add(loop.counter, code)
                    at = b.add(first, offset)
                    x = emit_moves(b, words, code_moves(p, code))
                    scale, zero = self._value_factors(at, e.counter, limit)
                    value = self._value(x, scale, zero)
                    b.store(value, self.memory, [offset, e.counter], [-1, self.along])

    def _value_factors(self, at: Value, e: Value, limit: Value) -> tuple[Value, Value]:
        b, form = self.b, self.form
        if form.by == "channel":
            group = b.div(at, form.group)
            short = form.width % self.y.lanes and self.along >= 0
            end = b.index(form.width) if short else None
            return self._pair(group, e, self.layout if self.along >= 0 else Layout(2), end)
        group = b.div(e, form.group)
        here = b.minimum(at, b.sub(limit, 1))  # what lies past the limit is not used
        return self._pair(group, here, Layout(2), None)

    # ---- scales and zeros

    def _token_factors(self, group: Value, at: Value, limit: Value) -> tuple[Value, Value] | None:
        if self.form.by == "channel":
            return None
        if self.along < 0:
            return self._pair(group, self.b.minimum(at, self.b.sub(limit, 1)), Layout(2), None)
        return self._pair(group, at, self.layout, limit)

    def _channel_factors(self, at: Value, channel: Value) -> tuple[Value, Value]:
        return self._pair(self.b.div(at, self.form.group), channel, Layout(2), None)

    def _pair(
        self, group: Value, at: Value, layout: Layout, limit: Value | None
    ) -> tuple[Value, Value]:
        reader, along = self.reader, 1 if layout.lanes > 1 else -1
        scale = reader.beside(reader.scales, group, at, layout, along, limit)
        if reader.zeros is None:
            return scale, self.b.number(float(self.zero), F32)
        return scale, reader.beside(reader.zeros, group, at, layout, along, limit)

    def _value(self, code: Value, scale: Value, zero: Value) -> Value:
        b = self.b
        x = b(m.Cast, code, dtype=F32, hint="code")
        return b(m.Mul, b(m.Sub, x, zero, hint="code"), scale, hint="value")
