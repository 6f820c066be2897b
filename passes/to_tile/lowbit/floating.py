"""Products with activations in f32: codes become f32 in registers, a group is summed, then
scaled."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.target import Target
from tilewright.passes.to_tile.lowbit.decode import decoder
from tilewright.passes.to_tile.lowbit.grouped import GroupedProduct
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place, load_column
from tilewright.passes.to_tile.lowbit.walk import Tiles, Units
from tilewright.passes.to_tile.lowbit.weights import Workplace


class FloatProduct(GroupedProduct):
    """A product with activations in f32."""

    def __init__(
        self,
        work: Workplace,
        product: PackedProduct,
        schedule: PackedSchedule,
        target: Target,
    ) -> None:
        assert isinstance(product.activations, s.Source)
        super().__init__(work, product, schedule)
        weights = product.weights
        self.x = work.buffers[product.activations.tensor]
        zero = weights.zero if self.stream.zeros is None else 0
        self.group_zeros: Tiles = []
        self.decoder = decoder(self.packing, weights.dtype, zero, target, self.stream.whole_zeros)

    def units(self) -> Units:
        p = self.packing
        group = max(1, min(p.group, self.product.length))
        return Units(group, p.chunk, p.padded_group, self.product.length)

    def start(self, place: Place, group: Value) -> Tiles:
        """The sums of a group, and the zeros that its codes lose."""
        self.group_zeros = []
        if self.stream.zeros is not None:
            self.group_zeros = [self.stream.zero(place, v, group) for v in range(len(place.blocks))]
        return [self.b.filled(0.0, F32, self.shapes.sums) for _ in place.blocks]

    def chunk(
        self, place: Place, sums: Tiles, chunk: Value, units: Sequence[int], first: Value
    ) -> Tiles:
        b, words, sums = self.b, self.stream.chunk(place, chunk), list(sums)
        for number, unit in enumerate(units):
            x = load_column(b, self.shapes, self.x, place, b.add(first, number))
            if self.product.narrow:
                x = b(m.Cast, x, dtype=F32, hint="x")
            for at, given in enumerate(words):
                zeros = self.group_zeros[at] if self.group_zeros else None
                w = self.decoder.emit(b, given, unit, zeros)
                sums[at] = b(m.Fma, x, w, sums[at], hint="sum")
        return sums

    def finish(self, place: Place, totals: Tiles, sums: Tiles, group: Value) -> Tiles:
        b, out = self.b, []
        for vector, (before, tile) in enumerate(zip(totals, sums, strict=True)):
            scale = self.stream.scale(place, vector, group)
            out.append(b(m.Fma, tile, scale, before, hint="total"))
        return out
