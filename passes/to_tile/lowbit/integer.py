"""Products of bytes: sum over a group of code * activation in 32 bits, then scaled in f32.

    sum_k (c_k - z) s * q_k t  =  s t (sum_k c_k q_k - z sum_k q_k)      within a group

``s`` and ``z`` are the weights' scale and zero, ``t`` the activations' scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I8, I32, U8
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import StreamDequantize, View
from tilewright.ir.packing import QUAD
from tilewright.ir.target import Target
from tilewright.passes.to_tile.lowbit.byte_codes import byte_codes, byte_offset
from tilewright.passes.to_tile.lowbit.grouped import GroupedProduct
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place, load_column
from tilewright.passes.to_tile.lowbit.unpack import emit_moves, quad_moves
from tilewright.passes.to_tile.lowbit.walk import Tiles, Units
from tilewright.passes.to_tile.lowbit.weights import Workplace

LARGEST_SUM = 2**31 - 1


class IntegerProduct(GroupedProduct):
    """A product with activations as bytes."""

    def __init__(
        self,
        work: Workplace,
        product: PackedProduct,
        schedule: PackedSchedule,
        target: Target,
    ) -> None:
        assert isinstance(product.activations, StreamDequantize)
        super().__init__(work, product, schedule)
        self.other = product.activations
        weights, other = product.weights, self.other
        self.codes, self.steps = work.buffers[other.words], work.buffers[other.scales]
        self.sums = work.buffers[other.more[0]] if other.extra == "sums" else None
        coded = byte_codes(weights.dtype, target)
        if coded is None or (coded.table and self.stream.zeros is not None):
            raise UnsupportedError(f"codes of {weights.dtype} as bytes", weights.loc)
        if other.zero or not other.signed:
            raise UnsupportedError("products of bytes need signed activations without a zero")
        self.from_, self.coded = byte_offset(coded.bits, target.signed_bytes), coded
        self.zero_point = weights.zero + coded.offset - self.from_
        if (self.stream.zeros is not None or self.zero_point) and self.sums is None:
            raise UnsupportedError("weights with a zero need the activations' sums", other.loc)
        summed = min(other.layout.group, product.length)
        if summed * 128 * ((1 << coded.bits) - 1) > LARGEST_SUM:
            raise UnsupportedError(f"sums of {summed} products of bytes in 32 bits", other.loc)
        self.ratio = self._ratio()

    def _ratio(self) -> int:
        """How many groups of activations make one of weights."""
        mine, theirs = self.packing.group, self.other.layout.group
        ratio, rest = divmod(mine, theirs)
        chunk = self.packing.chunk
        even = not rest and (ratio == 1 or (theirs % chunk == 0 and mine % chunk == 0))
        if not even and self.product.length > mine:
            raise UnsupportedError("groups of activations that do not divide the weights'")
        if not even and theirs % chunk:
            raise UnsupportedError("groups of activations that are not whole chunks")
        return max(1, ratio) if self.product.length > mine else -(-mine // theirs)

    def units(self) -> Units:
        group = self.other.layout.group
        per_group = -(-group // QUAD)
        whole, rest = divmod(self.product.length, group)
        slots = self.packing.padded_group // QUAD if self.ratio == 1 else per_group
        total = whole * per_group + -(-rest // QUAD)
        return Units(per_group, self.packing.chunk // QUAD, slots, total)

    def start(self, place: Place, group: Value) -> Tiles:
        """Minus the constant zero times the sum of the group's activations."""
        b = self.b
        tile = b.filled(0, I32, self.shapes.sums)
        zero = self.zero_point
        if self.stream.zeros is None and zero:
            assert self.sums is not None
            total = load_column(b, self.shapes, self.sums, place, group)
            tile = b(m.Add, tile, b(m.Mul, total, b.number(-zero, I32)), hint="sum")
        return [tile for _ in place.blocks]

    def chunk(
        self, place: Place, sums: Tiles, chunk: Value, units: Sequence[int], first: Value
    ) -> Tiles:
        b, words, sums = self.b, self.stream.chunk(place, chunk), list(sums)
        form = {"b_bits": self.coded.bits, "b_offset": self.from_}
        for number, unit in enumerate(units):
            x = load_column(b, self.shapes, self.codes, place, b.add(first, number))
            x = b(View, x, dtype=I8, layout=self.shapes.column_bytes, hint="x")
            wanted = quad_moves(self.packing, unit)
            for at, given in enumerate(words):
                quad = self.coded.emit(b, emit_moves(b, given, wanted))
                quad = b(View, quad, dtype=U8, layout=self.shapes.vector_bytes, hint="codes")
                sums[at] = b(t.Dot, sums[at], x, quad, hint="sum", **form)
        return sums

    def finish(self, place: Place, totals: Tiles, sums: Tiles, group: Value) -> Tiles:
        b, out = self.b, []
        step = load_column(b, self.shapes, self.steps, place, group)
        if self.coded.unit != 1.0:
            step = b(m.Mul, step, b.number(self.coded.unit, F32), hint="step")
        own = b.div(group, self.ratio) if self.ratio > 1 else group
        total = None
        if self.stream.zeros is not None:
            assert self.sums is not None
            total = load_column(b, self.shapes, self.sums, place, group)
            total = b(m.Cast, total, dtype=F32, hint="total")
        for vector, (before, tile) in enumerate(zip(totals, sums, strict=True)):
            scale = self.stream.scale(place, vector, own)
            value = b(m.Cast, tile, dtype=F32, hint="sum")
            if self.stream.zeros is not None and total is not None:
                zero = self.stream.zero(place, vector, own)
                if self.from_:
                    zero = b(m.Sub, zero, b.number(float(self.from_), F32), hint="zero")
                value = b(m.Sub, value, b(m.Mul, zero, total), hint="sum")
            out.append(b(m.Fma, value, b(m.Mul, step, scale), before, hint="total"))
        return out
