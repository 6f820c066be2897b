"""Predicted seconds of a GPU kernel's schedules: roofline of a multiprocessor, and what keeps it
busy.

A work item multiplies on matrix units, takes exponentials on special units and waits for blocks to
arrive. Several items at once, as many as registers, shared memory and warps allow, let one use a
unit while another waits; blocks under way hide the memory's latency. No GPU is asked for any of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph
from tilewright.ir.sizes import product
from tilewright.ir.target import Target
from tilewright.passes.to_tile.choices import Choice, with_choice
from tilewright.passes.to_tile.cost.ranking import bytes_of
from tilewright.passes.to_tile.gpu_spaces import (
    SHARED_BYTES,
    THREADS,
    block_registers,
    product_bytes,
    shared_bytes,
)
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.lowbit.info import has_packed_weights, packed_products
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.program import default_product_schedule
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule
from tilewright.passes.to_tile.whole_blocks.schedule import (
    BlockSchedule,
    bytes_read,
    choose_blocks,
    elements,
    padded,
)

SPARE = 48  # registers of a thread for addresses, counters, operands on their way
EXPONENTIAL = 8  # instructions around one on the special units


@dataclass(frozen=True)
class Chip:
    """Rates of a multiprocessor in a cycle (vendors' data sheets): multiply-adds of bf16 on matrix
    units and of f32 on ordinary ones, exponentials; bytes of the whole chip in a second."""

    processors: int
    matrix: float
    plain: float
    special: float
    hertz: float
    bytes: float
    near: float = 2.5  # bytes from the shared cache for one from memory
    latency: float = 900.0  # cycles from memory under load
    registers: int = 65536
    barrier: float = 120.0  # cycles in which the warps of an item wait for each other
    warps: int = 64
    start: float = 2500.0  # cycles of a work item's beginning and end


CHIPS = {
    "sm_80": Chip(108, 1024, 64, 16, 1.4e9, 1.5e12),
    "sm_90": Chip(132, 2048, 128, 16, 1.7e9, 3.3e12),
    "sm_100": Chip(148, 4096, 128, 16, 1.8e9, 7.7e12),
    "gfx942": Chip(304, 1024, 128, 16, 2.1e9, 5.3e12, warps=32),
}


@dataclass(frozen=True)
class Load:
    """Of one turn of a work item's loop, and the item's resources."""

    matrix: float  # multiply-adds
    plain: float  # instructions on ordinary units
    special: float
    bytes: float
    turns: float
    items: float
    warps: int
    registers: int
    shared: int
    stages: int
    unique: float  # bytes of all inputs
    shares: bool  # whether positions are shared out among as many items as there is room for


def gpu_seconds(
    graph: Graph, info: KernelInfo, target: Target, rows: int, choice: Choice,
    sizes: Mapping[str, int],
) -> float:  # fmt: skip
    """Of one schedule."""
    if has_packed_weights(info.graph):
        schedule = with_choice(default_product_schedule(info, target, rows), choice)
        return busy(_product_load(schedule, info, target, sizes), target)
    blocks = with_choice(choose_blocks(info, target, rows), choice)
    return busy(_block_load(blocks, info, target, sizes, rows > 0), target)


def busy(load: Load, target: Target) -> float:
    """Seconds until the last work item is done."""
    if not load.items:
        return 0.0
    chip = CHIPS[target.cpu]
    threads = load.warps * THREADS[target.gpu]
    at_once = min(
        chip.warps // load.warps,
        chip.registers // (threads * min(load.registers + SPARE, 255)),
        SHARED_BYTES[target.cpu] // max(load.shared, 1),
        32,
    )
    at_once = max(1, at_once)
    spilled = max(0, load.registers + SPARE - 255) * threads * 8 / chip.plain
    units = [load.matrix, load.plain / chip.plain + spilled, load.special / chip.special]
    arrival = load.bytes / (chip.near * chip.bytes / chip.hertz / chip.processors)
    waiting = max(0.0, chip.latency - (load.stages - 1) * max(sum(units), arrival))
    alone = sum(units) + waiting + chip.barrier
    turn = max(*units, arrival, alone / at_once)  # of one item, with others beside it
    waves = math.ceil(load.items / (chip.processors * at_once))
    together = at_once if load.shares else min(at_once, load.items / chip.processors)
    items = load.items / chip.processors if load.shares else waves * max(1.0, together)
    cycles = items * (turn * load.turns + chip.start / at_once)
    under_way = together * max(load.stages - 1, 0.5) * load.bytes  # of a multiprocessor
    speed = min(chip.bytes, chip.processors * under_way / (chip.latency / chip.hertz))
    return max(cycles / chip.hertz, load.unique / speed)


def _matrix_rate(rows: int, warps: int, target: Target) -> float:
    """Multiply-adds of a multiprocessor in a cycle: since Hopper four warps multiply 64 rows
    together, other shapes run by the units' older instructions at half the rate or less."""
    rate = CHIPS[target.cpu].matrix
    together = warps % 4 == 0 and rows >= 16 * warps
    return rate if target.cpu in ("sm_80", "gfx942") or together else rate / 2


def _copies(y: BlockSchedule, row_bytes: float, target: Target) -> float:
    """Instructions of threads that copy a block; the bulk copy engine takes a few in all."""
    return 0.0 if y.bulk else 3 * y.inner * row_bytes / 16


def _block_load(
    y: BlockSchedule, info: KernelInfo, target: Target, sizes: Mapping[str, int], shares: bool
) -> Load:
    chip, read = CHIPS[target.cpu], bytes_read(info)
    known = elements(info)
    wide = sum(padded(a.size) for a in known[:2]) if info.products else max(
        (padded(a.size) for a in known), default=1
    )  # fmt: skip
    scores = y.rows * y.inner
    rate = _matrix_rate(y.rows, y.warps, target) if read <= 2 else chip.plain
    work = scores * wide if info.products else 0
    exponentials = sum(isinstance(op, m.Exp | m.Exp2) for op in info.graph.body.ops)
    maps = sum("pointwise" in op.traits for op in info.graph.body.ops)
    count = info.row_count.evaluate(sizes)
    grid = product(a.size for a in info.grid).evaluate(sizes)
    length = info.inner.size.evaluate(sizes) if info.inner.name else 1
    return Load(
        matrix=work / rate,
        plain=scores * maps + y.rows * wide / 2 + _copies(y, wide * read, target),
        special=scores * exponentials,
        bytes=y.inner * wide * read,
        turns=max(1.0, length / y.inner),
        items=grid * math.ceil(count / y.rows),
        warps=y.warps,
        registers=block_registers(y, info, target),
        shared=shared_bytes(y, info),
        stages=y.stages,
        unique=sum(bytes_of(p, sizes) for p in info.graph.params),
        shares=shares,
    )


def _product_load(
    y: ProductSchedule, info: KernelInfo, target: Target, sizes: Mapping[str, int]
) -> Load:
    products = packed_products(info.graph)
    codes, bits = 16 * y.strips, max(p.packing.bits for p in products)
    count = info.row_count.evaluate(sizes)
    blocks = products[0].blocks.evaluate(sizes)
    decoded = y.height * codes * EXPONENTIAL / 4
    return Load(
        matrix=y.rows * y.height * codes / _matrix_rate(y.height, y.warps, target),
        plain=decoded,
        special=0.0,
        bytes=codes * y.height * bits / 8,
        turns=max(1.0, products[0].length / codes),
        items=blocks * (LANES // y.height) * math.ceil(count / y.rows),
        warps=y.warps,
        registers=y.rows * y.height // (y.warps * THREADS[target.gpu]),
        shared=product_bytes(y, info),
        stages=y.stages,
        unique=sum(bytes_of(p, sizes) for p in info.graph.params),
        shares=False,
    )
