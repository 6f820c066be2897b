"""Tile sizes of kernels with packed weights, from the target's registers."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.target import Target
from tilewright.passes.to_tile.cost.machine import unpacked_step_cycles
from tilewright.passes.to_tile.lowbit.tiles import TileShapes

PREFETCH = 256  # words: 1 KB further on in each stream of codes
# One vector within it of the best is taken: rows need no registers then (a Zen 4, u4: 8 rows of one
# vector for 6 of two take 0.77 of the time at 16 rows, 0.86 at 256, where the step says 1.00)
NEAR = 1.03


@dataclass(frozen=True)
class PackedSchedule:
    """``vectors`` blocks of weights side by side, ``rows`` rows of activations in registers,
    ``item_rows`` rows of a work item; ``prefetch`` words ahead of a stream are asked for."""

    lanes: int
    vectors: int
    rows: int
    item_rows: int
    prefetch: int = 0

    @property
    def shapes(self) -> TileShapes:
        return TileShapes(self.rows, self.lanes)


def packed_schedule(
    target: Target, rows: int, products: int, unpack: float | None = None
) -> PackedSchedule:
    """For up to ``rows`` rows (0: many) and some products with the same rows. ``unpack``:
    instructions that make a register of f32 out of codes; None for products of bytes or pairs.

    Every row and vector has a group's sum and a total in registers; codes being unpacked, scales
    and masks need a few more.
    """
    if target.lanes == 1:  # plain loops: every row more is text to compile, and work for one row
        return PackedSchedule(1, 1, 2, 96)
    room = (target.registers - 6) // 2 // products
    if rows and rows <= 8:
        tile = min(rows, max(1, room))
        vectors = max(1, min(4, room // tile))
        item = -(-rows // tile) * tile
        return PackedSchedule(target.lanes, vectors, tile, item, PREFETCH)
    if unpack is not None:
        shapes = [(r, v) for v in range(1, 5) for r in (1, 2, 3, 4, 6, 8) if r * v <= room]
        cycles = {x: unpacked_step_cycles(*x, unpack, target) for x in shapes}
        near = [x for x in shapes if cycles[x] <= NEAR * min(cycles.values())]
        tile, vectors = min(near, key=lambda x: (x[1] > 1, cycles[x], -x[0] * x[1]))
        return PackedSchedule(target.lanes, vectors, tile, tile * max(1, 96 // tile))
    # codes unpacked once serve all rows, activations broadcast once all vectors: about a square
    vectors = 3 if room >= 12 else 2 if room >= 6 else 1
    tile = max(1, min(room // vectors, 4))
    return PackedSchedule(target.lanes, vectors, tile, tile * max(1, 96 // tile))
