"""The stream of a product's weights: words chunk by chunk, scales and zeros group by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, U8
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place, as_f32, load_vector


class Workplace(Protocol):
    """Where a product is written to: its builder, and which buffer stands for which tensor."""

    @property
    def build(self) -> TileBuilder: ...

    @property
    def buffers(self) -> Mapping[Value, Value]: ...


class WeightStream:
    """Reads the weights of one product."""

    def __init__(self, work: Workplace, product: PackedProduct, schedule: PackedSchedule) -> None:
        self.b, self.shapes, self.ahead = work.build, schedule.shapes, schedule.prefetch
        self.packing, self.weights = product.packing, product.weights
        self.words = work.buffers[self.weights.words]
        self.scales = work.buffers[self.weights.scales]
        self.zeros: Value | None = None
        if self.weights.extra == "zeros":
            self.zeros = work.buffers[self.weights.more[0]]

    @property
    def whole_zeros(self) -> bool:
        """Whether there are zeros, and these are whole numbers from 0 to 255."""
        return self.zeros is not None and getattr(self.zeros.type, "dtype", None) == U8

    def chunk(self, place: Place, chunk: Value) -> list[list[Value]]:
        """The words of a chunk, for every vector."""
        return [self._words(place, at, chunk) for at in range(len(place.blocks))]

    def _words(self, place: Place, vector: int, chunk: Value) -> list[Value]:
        """Words further on are asked for where rows are too few to hide their way."""
        b, count, block = self.b, self.packing.words, place.blocks[vector]
        first, found = b.mul(chunk, count), []
        for at in range(count):
            number = b.add(first, at)
            found.append(load_vector(b, self.shapes, self.words, block, number))
            if place.ahead:
                self._ask(self.words, place.ahead[vector], number)
            elif self.ahead:
                column = b.add(b.mul(number, self.shapes.lanes), self.ahead)
                b.prefetch(self.words, [block, column], (-1, 1), self.shapes.vector)
        return found

    def _ask(self, memory: Value, block: Value, number: Value) -> None:
        """Asks for a vector of numbers that will be read."""
        column = self.b.mul(number, self.shapes.lanes)
        self.b.prefetch(memory, [block, column], (-1, 1), self.shapes.vector)

    def scale(self, place: Place, vector: int, group: Value) -> Value:
        """[1, lanes]: the scale of each of a block's rows."""
        if place.ahead:
            self._ask(self.scales, place.ahead[vector], group)
        return self._beside(self.scales, place.blocks[vector], group, self.weights.scale == F32)

    def zero(self, place: Place, vector: int, group: Value) -> Value:
        """[1, lanes]: the zero of each of a block's rows, in units of codes."""
        assert self.zeros is not None
        if place.ahead:
            self._ask(self.zeros, place.ahead[vector], group)
        return self._beside(self.zeros, place.blocks[vector], group, True)

    def _beside(self, memory: Value, block: Value, group: Value, plain: bool) -> Value:
        assert isinstance(memory.type, BufferType)
        x = load_vector(self.b, self.shapes, memory, block, group)
        return as_f32(self.b, x, memory.type.dtype, F32 if plain else self.weights.scale)
