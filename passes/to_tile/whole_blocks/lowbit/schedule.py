"""Sizes of blocks of a product with packed weights on a GPU.

The weights' rows are the rows of a product on matrix units, the activations' rows its columns: even
for one row of activations, units with eight columns to spare cost less than sums by ordinary units,
and codes go from shared memory straight into the registers that matrix units read.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.packing import HALF, STRIP, TILE_WORDS, WORD, Packing
from tilewright.ir.target import Target
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES

ROW_CLASSES = (8, 16, 32, 64, 0)  # rows of activations that have a form of their own (0: any)
FEW = 32  # rows up to which memory decides, not arithmetic
MANY = 128  # rows of a work item where there are more than those of all classes
# shared memory of blocks under way: of work items with few rows four fit into a multiprocessor, of
# those with many two
STAGE_BYTES = {("cuda", True): 48 << 10, ("cuda", False): 110 << 10}
STAGE_BYTES |= {("hip", True): 16 << 10, ("hip", False): 32 << 10}
MOST_STAGES = 4
# of a lane, with few rows: each of two warps takes all columns of activations, and those of all
# strips of a turn are read before the first is needed; sums of a run, and of all. More spill.
REGISTERS = 160
SUMS = 0.25  # bytes of sums written and read again, at most so much beside those of the words


@dataclass(frozen=True)
class ProductSchedule:
    """``rows`` of activations and ``vectors`` blocks of weights of a work item (of each ``height``
    rows), ``strips`` of codes of one turn of the loop, warps, stages; ``parts`` work items share
    out k."""

    rows: int
    vectors: int
    strips: int
    warps: int
    stages: int
    parts: int = 1
    height: int = LANES

    @property
    def pieces(self) -> int:
        """Work items that share out a block of weights."""
        return LANES // self.height

    def plain(self) -> Schedule:
        """What the passes shared with CPUs read of a schedule."""
        return Schedule(True, 1, self.rows, 1, 1, 1, 1, 1, False)


def row_class(rows: int) -> int:
    """The class of a call with so many rows of activations."""
    return next((known for known in ROW_CLASSES if known and rows <= known), 0)


def product_schedule(
    packings: tuple[Packing, ...],
    bits: int,
    target: Target,
    rows: int,
    parts: int = 1,
    registers: int = REGISTERS,
) -> ProductSchedule:
    """The default schedule for up to ``rows`` rows (0: any number) of activations of ``bits``
    bits; ``registers`` of a lane for the activations of a turn and its sums.

    With few rows a turn takes a whole chunk if there are registers for it, so that every word is
    read once: what matters are bytes under way. With many it takes some strips and reads planes of
    few bits again, which costs little beside the products, and leaves shared memory for
    activations. Half a block's rows are taken where all words of a turn would fill the registers.
    """
    block = (row_class(rows) if rows else 0) or MANY
    if target.gpu != "cuda":
        block = max(block, 16)
    few = block <= FEW
    strips = max(strips_of(p, few) for p in packings)
    while few and strips > 1 and strips * block * bits // WORD + 2 * block > registers:
        strips //= 2
    held = STAGE_BYTES[target.gpu, few]
    while not few and strips > 1 and 2 * STRIP * strips * block * bits // 8 > held:
        strips //= 2
    words = max(_words_of(p, strips) for p in packings)
    height = LANES // 2 if few and words > 2 * TILE_WORDS else LANES
    turn = STRIP * strips * block * bits // 8 + 4 * words * height
    # a product of few rows is not asynchronous: what it reads needs no place of its own
    stages = max(2, min(held // turn + few, MOST_STAGES if target.gpu == "cuda" else 2))
    warps = 2 if few else 4
    if target.cpu == "sm_80":  # where other numbers spill: found by compiling
        warps = 8 if block == MANY else 4 if (block, height) == (FEW, LANES) else warps
        if not few or (block == 16 and height < LANES):
            stages = 3 if words > 6 * TILE_WORDS else 2
    if bits == WORD:  # f32 goes to ordinary units, whose operands take registers
        return ProductSchedule(min(block, 64), 1, min(strips, 4), 4, 2, parts)
    return ProductSchedule(block, 1, strips, warps, stages, parts, height)


def strips_of(packing: Packing, few: bool) -> int:
    """Strips of codes that a turn takes, with few rows or many."""
    strips, least = packing.chunk // STRIP, min(packing.planes)
    return strips if few else min(strips, 8 if least == 2 else 4)


def _words_of(packing: Packing, strips: int) -> int:
    """Words of a lane that so many strips of codes lie in."""
    return sum(TILE_WORDS * max(1, strips * width // HALF) for width in packing.planes)


def parts_of(
    schedule: ProductSchedule, blocks: int, rows: int, length: int, bits: int, slots: int
) -> int:
    """How many work items share out ``length`` codes of ``bits`` bits a row, for ``blocks`` blocks
    of weights and ``rows`` rows of activations; ``slots`` work items run at once. A power of two,
    so that few forms are compiled."""
    items = -(-blocks * schedule.pieces // schedule.vectors) * -(-rows // schedule.rows)
    turns = length // (STRIP * 8)
    most = SUMS * length * bits / (8 * 8 * max(rows, 1))  # a sum is written once and read once
    parts = 1
    while items * parts * 2 <= slots and turns >= 4 * parts and 2 * parts <= most:
        parts *= 2
    return parts
