"""Products with activations in bf16: two products of a lane's 32-bit word in one instruction.

Codes become bf16 by a table in registers, which is exact for the numbers that a few bits stand for;
products are exact in f32 and added up in f32.

    sum_k (c_k - z) s x_k  =  s (sum_k c_k x_k - z sum_k x_k)      within a group
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F32, I32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import PAIR, Packing
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.cost import total_slots
from tilewright.passes.to_tile.lowbit.decode import decoder
from tilewright.passes.to_tile.lowbit.grouped import GroupedProduct
from tilewright.passes.to_tile.lowbit.halves import HalfTable, half_table
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place
from tilewright.passes.to_tile.lowbit.unpack import chunk_words
from tilewright.passes.to_tile.lowbit.walk import Tiles, Units
from tilewright.passes.to_tile.lowbit.weights import Workplace

ONES = 0x3F803F80  # 1 and 1 in bf16


@lru_cache(maxsize=1024)
def pair_table(
    packing: Packing, dtype: DType, zero: int, length: int, target: Target
) -> HalfTable | None:
    """How a row of ``length`` codes is multiplied with bf16 in pairs; None if it is not: the target
    has no such instruction, a pair would lie in two groups, there is no table of the values, or
    taking single codes apart is less work."""
    if not target.bf16_dot or length % PAIR or (packing.group % PAIR and packing.group < length):
        return None
    found = half_table(packing, dtype, zero, target)
    if found is None:
        return None
    b, pairs = TileBuilder(), packing.chunk // PAIR
    words = chunk_words(b, packing)
    for pair in range(pairs):
        found.emit(b, words, pair)
    single = decoder(packing, dtype, zero, target).instructions(target) + packing.chunk
    return found if total_slots(b, target) + pairs < single else None


class PairProduct(GroupedProduct):
    """A product with activations in bf16, in pairs."""

    def __init__(
        self,
        work: Workplace,
        product: PackedProduct,
        schedule: PackedSchedule,
        table: HalfTable,
    ) -> None:
        assert isinstance(product.activations, s.Source)
        super().__init__(work, product, schedule)
        self.x, self.table = work.buffers[product.activations.tensor], table
        rows, lanes = self.shapes.rows, self.shapes.lanes
        self.column = Layout(3).local(rows, 1, 1).replicate(lanes).local(1, 1, PAIR)
        self.vector = Layout(3).spatial(1, lanes, 1).local(1, 1, PAIR)

    def units(self) -> Units:
        p, group = self.packing, max(1, min(self.packing.group, self.product.length))
        total = self.product.length // PAIR
        return Units(-(-group // PAIR), p.chunk // PAIR, p.padded_group // PAIR, total)

    def start(self, place: Place, group: Value) -> Tiles:
        """The sums of a group; last, if zeros need it, that of its activations."""
        count = len(place.blocks) + (self.stream.zeros is not None)
        return [self.b.filled(0.0, F32, self.shapes.sums) for _ in range(count)]

    def chunk(
        self, place: Place, sums: Tiles, chunk: Value, units: Sequence[int], first: Value
    ) -> Tiles:
        b, words, sums = self.b, self.stream.chunk(place, chunk), list(sums)
        bounds = [(0, "clamp", place.total)] if self.shapes.rows > 1 else []
        for number, unit in enumerate(units):
            at = [place.row, b.mul(b.add(first, number), PAIR)]
            x = b.load(self.x, at, (0, 2), self.column, bounds, hint="x")
            for vector, given in enumerate(words):
                w = self._pair(self.table.emit(b, given, unit))
                sums[vector] = b(t.Dot, sums[vector], x, w, hint="sum")
            if len(sums) > len(words):
                ones = b.filled(ONES, I32, self.shapes.vector)
                sums[-1] = b(t.Dot, sums[-1], x, self._pair(ones), hint="total")
        return sums

    def _pair(self, words: Value) -> Value:
        return self.b(View, words, dtype=BF16, layout=self.vector, hint=words.hint)

    def finish(self, place: Place, totals: Tiles, sums: Tiles, group: Value) -> Tiles:
        b, out = self.b, []
        for vector, (before, tile) in enumerate(zip(totals, sums, strict=False)):
            value = tile
            if len(sums) > len(place.blocks):
                zero = self.stream.zero(place, vector, group)
                value = b(m.Sub, tile, b(m.Mul, zero, sums[-1]), hint="sum")
            scale = self.stream.scale(place, vector, group)
            out.append(b(m.Fma, value, scale, before, hint="total"))
        return out
