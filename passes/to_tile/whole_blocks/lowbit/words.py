"""The words of one turn of a product's loop: tiles of every plane, as far as a turn reads them.

A turn takes some strips of a chunk, or all. A plane whose tile holds the codes of several turns is
read in each of them, and moved down to where the turn's first strip would lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.layout import Layout
from tilewright.ir.packing import HALF, STRIP, TILE_WORDS, WORD, Packing
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.weights import Workplace
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES


@dataclass(frozen=True)
class Block:
    """A block of weights, or the rows of it from ``lane`` on (None: the first)."""

    number: Value
    lane: Value | None

    def lanes(self, b: TileBuilder, number: Value) -> Value:
        """Where the rows' numbers begin among those of all blocks, or groups, of which this is one
        ``number``."""
        first = b.mul(number, LANES)
        return first if self.lane is None else b.add(first, self.lane)


@dataclass(frozen=True)
class TurnWords:
    """Reads words [blocks, …] of a packing, ``strips`` strips of a chunk a turn, of ``height``
    rows."""

    work: Workplace
    memory: Value
    packing: Packing
    strips: int
    offsets: Value  # of the words of a tile, i64 [rows, words]

    @staticmethod
    def of(work: Workplace, memory: Value, packing: Packing, strips: int, height: int) -> TurnWords:
        b, tile = work.build, Layout(2).local(height, TILE_WORDS)
        rows, words = (b(t.Coordinate, dim=d, layout=tile.collapse(1 - d)) for d in range(2))
        across = b(m.Mul, rows, b.number(TILE_WORDS, I64))
        return TurnWords(
            work, memory, packing, strips, b(m.Add, across, words, hint="words_of_tile")
        )

    @property
    def turns(self) -> int:
        """Turns of a chunk."""
        return self.packing.chunk // STRIP // self.strips

    def read(self, block: Block, turn: Value) -> dict[int, Value]:
        """By the number of the word of a chunk's first turn that a tile begins with: the tile."""
        b = self.work.build
        chunk, inside = turn, b.index(0)
        if self.turns > 1:
            chunk, inside = b.div(turn, self.turns), b.mod(turn, self.turns)
        stride = b(t.StrideOf, self.memory, dim=0, hint="stride")
        first = b.add(b.mul(block.number, stride), b.mul(chunk, self.packing.words * LANES))
        if block.lane is not None:
            first = b.add(first, b.mul(block.lane, TILE_WORDS))
        found, word = {}, 0
        for width in self.packing.planes:
            held = HALF // width  # strips of a tile
            for at in range(max(1, self.strips // held)):
                here = b.add(first, (word + TILE_WORDS * at) * LANES)
                found[word + TILE_WORDS * at] = self._tile(b, here, inside, held, width)
            word += self.packing.chunk * width // WORD
        return found

    def _tile(self, b: TileBuilder, at: Value, inside: Value, held: int, width: int) -> Value:
        """A tile of a plane; ``inside``: which turn of a chunk it is."""
        per_turn, lasting = self.strips // held, held // self.strips
        if self.turns > 1:
            number = b.mul(inside, per_turn) if per_turn else b.div(inside, lasting)
            at = b.add(at, b.mul(number, TILE_WORDS * LANES))
        tile = b(t.Gather, self.memory, at, self.offsets, hint="words")
        if self.turns == 1 or lasting < 2:
            return tile
        down = b.mul(b.mod(inside, lasting), width * self.strips)
        return b(m.ShiftRightSigned, tile, b.number_of(down, I32), hint="words")
