"""The stream of a product's weights: words chunk by chunk, scales and zeros group by group."""

from __future__ import annotations

from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place, as_f32, load_vector
from tilewright.passes.to_tile.state import LoweringState


class WeightStream:
    """Reads the weights of one product."""

    def __init__(
        self, state: LoweringState, product: PackedProduct, schedule: PackedSchedule
    ) -> None:
        self.b, self.shapes, self.ahead = state.build, schedule.shapes, schedule.prefetch
        self.packing, self.weights = product.packing, product.weights
        self.words = state.buffers[self.weights.words]
        self.scales = state.buffers[self.weights.scales]
        self.zeros: Value | None = None
        if self.weights.extra == "zeros":
            self.zeros = state.buffers[self.weights.more[0]]

    def chunk(self, place: Place, chunk: Value) -> list[list[Value]]:
        """The words of a chunk, for every vector."""
        return [self._words(block, chunk) for block in place.blocks]

    def _words(self, block: Value, chunk: Value) -> list[Value]:
        """Words further on are asked for where rows are too few to hide their way."""
        b, count = self.b, self.packing.words
        first, found = b.mul(chunk, count), []
        for at in range(count):
            found.append(load_vector(b, self.shapes, self.words, block, b.add(first, at)))
            if self.ahead:
                column = b.add(b.mul(b.add(first, at), self.shapes.lanes), self.ahead)
                b.prefetch(self.words, [block, column], (-1, 1), self.shapes.vector)
        return found

    def scale(self, block: Value, group: Value) -> Value:
        """[1, lanes]: the scale of each of the block's rows."""
        return self._beside(self.scales, block, group, self.weights.scale == F32)

    def zero(self, block: Value, group: Value) -> Value:
        """[1, lanes]: the zero of each of the block's rows, in units of codes."""
        assert self.zeros is not None
        return self._beside(self.zeros, block, group, True)

    def _beside(self, memory: Value, block: Value, group: Value, plain: bool) -> Value:
        assert isinstance(memory.type, BufferType)
        x = load_vector(self.b, self.shapes, memory, block, group)
        return as_f32(self.b, x, memory.type.dtype, F32 if plain else self.weights.scale)
