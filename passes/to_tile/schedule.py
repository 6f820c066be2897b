"""Tile sizes from an analytic model of the target: no tuning needed for a good first answer.

Two layouts. With *rows on lanes* one vector holds as many rows as it has lanes, and what is shared
along the inner axis is broadcast: every product is an outer product, nothing is summed across
lanes.
With *rows in registers* the element's axis lies on lanes: few rows read each shared byte once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilewright.ir.target import Target
from tilewright.passes.to_tile.cost.machine import step_cycles


@dataclass(frozen=True)
class Schedule:
    """How one block is computed.

    ``rows``: rows of a block; ``inner_tile``: positions of the inner axis in one register tile
    of a product, ``pointwise_tile`` of one without (functions need registers for themselves);
    ``inner_block``: positions between two updates of running statistics; ``element_tile``: elements
    of a vector-valued sum in one register tile (rows on lanes) or registers of sums (rows in them).
    """

    rows_on_lanes: bool
    lanes: int
    rows: int
    inner_tile: int
    pointwise_tile: int
    inner_block: int
    element_tile: int
    unroll: int
    bf16_dot: bool
    inner_part: int = 768  # positions of a work item where the inner axis can be shared out
    sum_chunk: int = 128  # products added up before they join a longer sum
    prefetch: int = 0  # positions ahead that streamed operands are asked for
    align: int = 1  # blocks start on multiples of it: cached tokens lie packed (cached/)
    positions_on_lanes: bool = False  # rows in registers: keys of a cache or columns on lanes
    signed_bytes: bool = False  # the 8-bit dot instruction overflows on unsigned bytes
    kept_by_row: bool = False  # what phases keep lies [row, position] in scratch
    in_order: bool = False  # statistics of a block take position after position (orders.py)
    row_parts: int = 0  # sums of a row formed beside each other, 0: as lanes and registers suit


def row_classes(target: Target) -> tuple[int, ...]:
    """Upper bounds on the number of rows that share one read, each with its own layout; the last
    class (0) is for any number."""
    lanes = target.lanes
    if lanes == 1:
        return (0,)
    few = tuple(r for r in (1, 2, 4, 8) if r <= lanes // 2)
    return (*few, lanes, 0)


def row_class(classes: tuple[int, ...], rows: int) -> int:
    """The class of a call with so many rows."""
    return next((known for known in classes if known and rows <= known), 0)


def choose_schedule(target: Target, rows: int) -> Schedule:
    """The cheapest schedule for up to ``rows`` rows (0: many) by cycles per multiply-add."""
    if target.lanes == 1:
        return Schedule(True, 1, 4, 4, 1, 32, 4, 1, False)
    if rows and rows <= target.lanes // 2:
        tile = target.lanes // rows
        return Schedule(
            False,
            target.lanes,
            rows,
            tile,
            tile,
            max(128, tile),
            16,
            2,
            False,
            inner_part=128,
            prefetch=16,
        )
    limit = 1 if rows else 3
    candidates = [
        (step_cycles(vectors, broadcast, target), -broadcast * vectors, vectors, broadcast)
        for vectors in range(1, limit + 1)
        for broadcast in range(2, 17, 2)
        if fits_registers(target, vectors, broadcast)
    ]
    _, _, vectors, broadcast = min(candidates)
    block = block_length(target, vectors, broadcast)
    return Schedule(
        rows_on_lanes=True,
        lanes=target.lanes,
        rows=vectors * target.lanes,
        inner_tile=broadcast,
        pointwise_tile=2,
        inner_block=block,
        element_tile=broadcast,
        unroll=4,
        bf16_dot=target.bf16_dot,
    )


def positions_on_lanes(schedule: Schedule) -> Schedule:
    """The same with few rows in registers and positions of the inner axis on lanes, as a cache's
    keys want it."""
    return replace(
        schedule,
        positions_on_lanes=True,
        kept_by_row=True,
        inner_tile=schedule.lanes,
        pointwise_tile=schedule.lanes,
    )


SUMS = 8  # registers of them, as many multiply-adds as are under way


AHEAD = 4  # times as far: stretches of terms lie far apart, which no hardware foresees


def keys_on_lanes(schedule: Schedule) -> Schedule:
    """For few rows and keys [terms, positions]: a vector of positions at a time, so that short
    caches take short (of several, 17 keys took 3 times as long, and 4,096 no less)."""
    return replace(positions_on_lanes(schedule), prefetch=AHEAD * schedule.prefetch)


def columns_on_lanes(schedule: Schedule) -> Schedule:
    """For few rows and weights [terms, columns], neighbours of which belong to different columns:
    so many of them at once that a term's are read in stretches."""
    turned = positions_on_lanes(schedule)
    tile = turned.lanes * max(1, SUMS // turned.rows)
    tile = math.gcd(tile, turned.inner_block, turned.inner_part)  # blocks are whole tiles
    if tile % turned.lanes:
        return schedule
    return replace(turned, inner_tile=tile, prefetch=AHEAD * turned.prefetch)


def one_vector(schedule: Schedule) -> Schedule:
    """For as many rows as lanes, on 16: memory is read once, by tiles of 8 positions in longer
    blocks (a Zen 4, heads of 64 and 128: 0.94 of the time of tiles of 16; 300 to 8,192 keys: blocks
    of 512 and loops of two steps 0.96 of that of 192 and four)."""
    if schedule.lanes != 16 or schedule.rows != 16 or LONG_BLOCK % schedule.align:
        return schedule
    return replace(schedule, inner_tile=8, inner_block=LONG_BLOCK, unroll=2)


def farther_ahead(schedule: Schedule, position_bytes: int) -> Schedule:
    """A few rows in registers that walk all of memory by themselves, ``position_bytes`` at a
    position: longer blocks, and memory asked for farther ahead (a Zen 4, heads of 64 and 128, 300
    to 16,384 keys: 0.97 of the time with AVX-512, 0.94 with AVX2, of bf16 and 16,384 keys 0.73 to
    1.02). One row of so few instructions a position that the processor looks ahead by itself asks
    for nothing (heads of 64 in 16 bits: 0.78 to 0.97 of that)."""
    alone = schedule.rows == 1 and position_bytes <= LINES_ALONE
    return replace(schedule, inner_block=LONG_BLOCK, prefetch=0 if alone else 32)


def fewer_rows(schedule: Schedule) -> Schedule:
    """A schedule of many rows on lanes for products alone, on 16: two vectors of rows. What a third
    saves in loads is less than what blocks lose whose rows end early (a Zen 4, weights of 2048 x
    2048: 17 % at 128 rows, 10 % at 256, 0.6 % at 2,048)."""
    if schedule.lanes == 16:
        return replace(schedule, rows=min(schedule.rows, 2 * schedule.lanes))
    return schedule


LINES_ALONE = 128  # bytes of a position that need not be asked for
LONG_BLOCK = 512  # positions
ROW_WORK = 1 << 15  # numbers of a work item that computes rows one by one
MOST_ROWS = 64
# Of work items that compute rows, which may be a few hundred instructions: as many are claimed at
# once as make so many claims (a Zen 4, two threads, 16,384 rows of 64: 0.6 of the time).
ROW_CLAIMS = 128


def row_schedule(target: Target, length: int | None = None) -> Schedule:
    """For kernels that compute each row, of so many numbers (None: any number), by itself: its
    elements on lanes, as many rows a work item as make its beginning cheap (a Zen 4, rows of 1,024:
    12 % of the time of a norm with 8, 2 % with 32)."""
    rows = 8 if length is None else max(1, min(MOST_ROWS, ROW_WORK // max(1, length)))
    return Schedule(False, target.lanes, 1 << (rows.bit_length() - 1), 1, 1, 1, 4, 4, False)


def fits_registers(target: Target, vectors: int, broadcast: int) -> bool:
    """Accumulators, one operand's vectors and a broadcast must stay in registers."""
    spare = vectors if target.folds_broadcast else vectors + 1
    return vectors * broadcast + spare <= target.registers - (1 if target.folds_broadcast else 0)


def block_length(target: Target, vectors: int, broadcast: int) -> int:
    """Block length so that scores stay in the nearer caches."""
    row_bytes = vectors * target.lanes * 4
    wanted = max(32, min(128, target.l2_bytes // 16 // row_bytes))
    unit = math.lcm(broadcast, target.lanes)  # whole register tiles, and whole vectors of positions
    return max(1, wanted // unit) * unit
