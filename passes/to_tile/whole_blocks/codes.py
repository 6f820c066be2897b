"""Blocks of keys or values from a low-bit cache: words are read once, codes cut out in registers.

How codes lie is made for vectors of a CPU (ir/cache_form.py), and suits blocks as well. A *chunk*
is 4, 8, 16 or 32 neighbouring codes (channels of a token for keys, tokens of a channel for values)
in as few words as it takes. A block of words has a row for every chunk, so that code number k of
all chunks comes by shifts and masks that are the same everywhere, and the block of codes is those
blocks in turn:

    words [chunks, tokens]  ->  codes k: ((words >> at_k) & mask_k)  ->  [channels, tokens]

A value is (code - zero) * scale. Where all channels of a token share both, products are with codes,
which have few bits and are exact in any dtype, and the rest costs something per token:

    sum_d q_d k_d  =  scale (sum_d q_d c_d - zero sum_d q_d)
    sum_m p_m v_m  =  sum_m (p_m scale_m) c_m - sum_m (p_m scale_m) zero_m

Where groups are padded, or a block is shorter than a chunk, every
code looks up its own words.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.cache_form import LANES
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.packing import QUAD
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.frame import Frame, FrameMemory, Place


def has_one_scale(op: CachedStream) -> bool:
    """True if all channels of a token share a scale."""
    return op.by == "token" and op.form.channel_groups == 1


class CodeBlock:
    """A block of one cache where a work item is. ``cut``: it may reach past the last token."""

    def __init__(
        self, memory: FrameMemory, op: CachedStream, frame: Frame, place: Place, cut: bool
    ) -> None:
        self.memory, self.state, self.b = memory, memory.state, memory.build
        self.op, self.form, self.frame, self.place, self.cut = op, op.form, frame, place, cut
        tokens, channels = op.dims[2:]
        if tokens != (self.state.info.inner.name,) or {*tokens, *channels} != set(frame.axes):
            raise UnsupportedError("a cache read in another way than as keys or values", op.loc)
        self.tokens, self.channels = frame.axes.index(tokens[0]), frame.axes.index(channels[0])
        self.at = place.at[tokens[0]]
        self.words = self.state.buffers[op.words]
        self.lead = self.state.source_index(op, self.state.grid_at)[0][:2]

    def value(self) -> Value:
        """The numbers that the codes stand for, in f32; what lies past the end is finite."""
        b = self.b
        scale, zero = self.factors(self.tokens)
        return b(m.Mul, b(m.Sub, self.codes(F32), zero, hint="from_zero"), scale, hint="value")

    def codes(self, dtype: DType) -> Value:
        """The codes as numbers, which are exact in any dtype."""
        if self._has_chunks():
            return self._in_chunks(dtype)
        code = self.b(m.Cast, self._one_by_one(), dtype=F32, hint="code")
        return code if dtype == F32 else self.b(m.Cast, code, dtype=dtype, hint="code")

    def factors(self, tokens: int) -> tuple[Value, Value]:
        """Scales and zeros in f32, along what they change with; tokens along a dimension."""
        op, buffers = self.op, self.state.buffers
        zero = self.b.number(float(op.zero), F32)
        if op.zeros:
            zero = self._beside(buffers[op.more[0]], tokens, "zero")
        return self._beside(buffers[op.scales], tokens, "scale"), zero

    # ---- whole chunks

    @property
    def _coded(self) -> int:
        """The dimension along which a chunk's codes lie."""
        return self.channels if self.form.keys else self.tokens

    def _has_chunks(self) -> bool:
        """True if blocks are whole chunks of codes that lie without padding between groups."""
        form, size = self.form, self.frame.sizes[self._coded]
        if size % form.packing.chunk:
            return False
        return not form.keys or form.channel_groups == 1 or form.group % form.packing.chunk == 0

    def _in_chunks(self, dtype: DType) -> Value:
        p, keys = self.form.packing, self.form.keys
        words = [self._key_words(w) if keys else self._value_words(w) for w in range(p.words)]
        layout = Layout(2).local(*self.frame.sizes)
        attrs = {"packing": str(p), "dim": self._coded, "dtype": dtype, "layout": layout}
        return self.b(t.Unpack, *words, hint="codes", **attrs)

    def _key_words(self, word: int) -> Value:
        """Words [chunks, tokens], or turned: neighbours of 16 tokens lie side by side."""
        b, p = self.b, self.form.packing
        here, chunk = self._here(self.tokens, 1), self._here(self.channels, p.chunk)
        row = b(m.Div, here, b.number(LANES, I32), hint="row")
        first = b.div(self.at, LANES)
        if self.cut:
            last = b.sub(b.sub(b.size(self._shape(self.words)[2]), 1), first)
            row = b(m.Min, row, b.number_of(last, I32), hint="row")
        if self.frame.sizes[self.channels] > p.chunks(self.form.width) * p.chunk:
            chunk = b(m.Min, chunk, b.number(p.chunks(self.form.width) - 1, I32), hint="chunk")
        row = b(m.Mul, self._wide(row), self._stride(self.words, 2), hint="offsets")
        lane = b(m.Mod, here, b.number(LANES, I32), hint="lane")
        column = b(m.Mul, chunk, b.number(p.words * LANES, I32), hint="column")
        column = b(m.Add, column, b.number(word * LANES, I32), hint="column")
        along = b(m.Add, self._wide(lane), self._wide(column), hint="column")
        along = b(m.Mul, along, self._stride(self.words, 3), hint="offsets")
        offsets = b(m.Add, row, along, hint="offsets")
        return b(t.Gather, self.words, self._start(self.words, first), offsets, hint="words")

    def _value_words(self, word: int) -> Value:
        """Words [chunks, channels], or turned."""
        b, p, form = self.b, self.form.packing, self.form
        row, column = b.div(self.at, p.chunk), b.index(word * form.padded)
        dims = [-1, -1, self.tokens, self.channels]
        shape = [0, 0]
        shape[self.tokens] = self.frame.sizes[self.tokens] // p.chunk
        shape[self.channels] = self.frame.sizes[self.channels]
        bounds = []
        if self.cut:
            bounds.append((self.tokens, "zero", b.size(self._shape(self.words)[2])))
        if shape[self.channels] > form.padded:
            bounds.append((self.channels, "zero", b.index((word + 1) * form.padded)))
        layout = Layout(2).local(*shape)
        return b.load(self.words, [*self.lead, row, column], dims, layout, bounds, hint="words")

    # ---- every code by itself

    def _one_by_one(self) -> Value:
        b, p, form = self.b, self.form.packing, self.form
        token, channel = self._position(self.tokens), self._position(self.channels)
        coded = self._padded(channel) if form.keys else token
        chunk, number = self._split(coded, p.chunk)
        quad, byte = self._split(number, QUAD)
        total: Value | None = None
        first, low = 0, 0
        for width in p.planes:
            turn, field = self._split(quad, 8 // width)
            word = b(m.Add, turn, b.number(first, I32), hint="word")
            if form.keys:
                row, lane = self._split(token, LANES)
                words = b(m.Fma, chunk, b.number(p.words, I32), word, hint="word")
                column = b(m.Fma, words, b.number(LANES, I32), lane, hint="column")
            else:
                row, column = chunk, b(m.Fma, word, b.number(form.padded, I32), channel)
            bit = b(m.Mul, field, b.number(width, I32), hint="bit")
            bit = b(m.Fma, byte, b.number(8, I32), bit, hint="bit")
            moved = b(
                m.ShiftRightSigned, self._looked_up(self.words, row, column), bit, hint="bits"
            )
            bits = b(m.BitAnd, moved, b.number((1 << width) - 1, I32), hint="bits")
            bits = b(m.ShiftLeft, bits, b.number(low, I32), hint="bits")
            total = bits if total is None else b(m.BitOr, total, bits, hint="code")
            first, low = first + p.chunk * width // 32, low + width
        assert total is not None
        return total

    def _padded(self, channel: Value) -> Value:
        """Where a channel lies among codes that padding of groups stands between."""
        p, b = self.form.packing, self.b
        group, inside = self._split(channel, p.group)
        return b(m.Fma, group, b.number(p.padded_group, I32), inside, hint="coded")

    def _split(self, x: Value, by: int) -> tuple[Value, Value]:
        number = self.b.number(by, I32)
        return self.b(m.Div, x, number, hint="outer"), self.b(m.Mod, x, number, hint="inner")

    # ---- scales and zeros

    def _beside(self, buffer: Value, tokens: int, hint: str) -> Value:
        """Numbers that groups of codes share, in f32."""
        x = (
            self._of_tokens(buffer, tokens, hint)
            if self.form.by == "token"
            else self._of_channels(buffer, hint)
        )
        return (
            x if getattr(x.type, "dtype", F32) == F32 else self.b(m.Cast, x, dtype=F32, hint=hint)
        )

    def _of_tokens(self, buffer: Value, tokens: int, hint: str) -> Value:
        b, form = self.b, self.form
        if form.channel_groups > 1:
            group = b(m.Div, self._position(self.channels), b.number(form.group, I32), hint="group")
            return self._looked_up(buffer, group, self._position(self.tokens))
        bounds = [(tokens, "zero", b.size(self._shape(buffer)[3]))] if self.cut else []
        at, dims = [*self.lead, b.index(0), self.at], [-1, -1, -1, tokens]
        sizes = [1, 1]
        sizes[tokens] = self.frame.sizes[self.tokens]
        return b.load(buffer, at, dims, Layout(2).local(*sizes), bounds, hint=hint)

    def _of_channels(self, buffer: Value, hint: str) -> Value:
        b, form = self.b, self.form
        if form.group % self.frame.sizes[self.tokens]:  # blocks start at multiples of their size
            group = b(m.Div, self._position(self.tokens), b.number(form.group, I32), hint="group")
            return self._looked_up(buffer, group, self._position(self.channels))
        short = form.width < self.frame.sizes[self.channels]
        bounds = [(self.channels, "zero", b.index(form.width))] if short else []
        at = [*self.lead, b.div(self.at, form.group), b.index(0)]
        dims = [-1, -1, -1, self.channels]
        return b.load(buffer, at, dims, self._layout(self.channels), bounds, hint=hint)

    # ---- positions and memory

    def _layout(self, dim: int, step: int = 1) -> Layout:
        sizes = [1, 1]
        sizes[dim] = self.frame.sizes[dim] // step
        return Layout(2).local(*sizes)

    def _here(self, dim: int, step: int) -> Value:
        """0, 1, 2, … along a dimension of every ``step`` positions."""
        here = self.b(t.Coordinate, dim=dim, layout=self._layout(dim, step), hint="here")
        return self.b(m.Cast, here, dtype=I32, hint="here")

    def _position(self, dim: int) -> Value:
        return self.memory.position(self.frame.axes[dim], self.frame, self.place, I32)

    def _wide(self, x: Value) -> Value:
        return self.b(m.Cast, x, dtype=I64, hint=x.hint)

    def _shape(self, buffer: Value) -> tuple[Size, ...]:
        assert isinstance(buffer.type, BufferType)
        return buffer.type.shape

    def _stride(self, buffer: Value, dim: int) -> Value:
        return self.b.splat(self.b(t.StrideOf, buffer, dim=dim, hint="stride"))

    def _start(self, buffer: Value, row: Value | None) -> Value:
        """The offset of a row (None: the first) of this batch and head."""
        b, total = self.b, self.b.index(0)
        for dim, index in enumerate([*self.lead, *([] if row is None else [row])]):
            stride = b(t.StrideOf, buffer, dim=dim, hint="stride")
            total = b.add(total, b.mul(index, stride))
        return total

    def _looked_up(self, buffer: Value, row: Value, column: Value) -> Value:
        """The last two dimensions at tiles of positions, moved inside."""
        b, total = self.b, None
        for dim, index in ((2, row), (3, column)):
            last = b.number_of(b.sub(b.size(self._shape(buffer)[dim]), 1), I32)
            inside = b(m.Max, b(m.Min, index, last), b.number(0, I32), hint="inside")
            term = b(m.Mul, self._wide(inside), self._stride(buffer, dim), hint="along")
            total = term if total is None else b(m.Add, total, term, hint="offsets")
        assert total is not None
        return b(t.Gather, buffer, self._start(buffer, None), total, hint=buffer.hint)


def cached(state: LoweringState) -> list[CachedStream]:
    """The caches that a kernel reads."""
    return [op for op in state.info.graph.body.ops if isinstance(op, CachedStream)]
