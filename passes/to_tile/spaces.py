"""The space of schedules of each kind of kernel on a CPU, and what a whole choice has to obey.

The values are those that can win on some machine: multiples of the register tile, blocks that fit a
cache. What cannot be compiled, or would only spill registers, is refused before anything is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_stream import Reduce
from tilewright.ir.target import Target
from tilewright.passes.to_tile.cached.info import cached_ops
from tilewright.passes.to_tile.choices import Choice, Space, space_around, with_choice
from tilewright.passes.to_tile.gpu_spaces import gpu_space
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse, is_routing, is_row_kernel
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lower import default_schedule, prepared
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.schedule import Schedule, fits_registers

TILES = (4, 6, 8, 12, 16)  # of 10 and 14 no block that fits is a multiple
ELEMENTS = (4, 6, 8, 12, 16)
BLOCKS = (32, 48, 64, 96, 128, 192, 256, 512)
SCRATCH = 2  # parts of the second-level cache that a block's scores may take: one of so many


def kernel_info(graph: Graph) -> KernelInfo:
    """What the lowering knows of a stream graph's kernel."""
    return analyse(prepared(graph))


def kernel_space(graph: Graph, target: Target, rows: int) -> Space:
    """The schedules of a kernel for up to ``rows`` rows (0: many). Raises UnsupportedError for
    kernels whose schedule is not chosen by numbers (routing)."""
    if is_routing(graph):
        raise UnsupportedError(f"{graph.name}: a routing kernel has one schedule")
    info = kernel_info(graph)
    if target.gpu:
        return gpu_space(info, target, rows)
    schedule = default_schedule(info, target, rows)
    if isinstance(schedule, PackedSchedule):
        return packed_space(schedule, target, rows)
    if is_row_kernel(info.graph):
        return space_around(schedule, {"rows": (1, 2, 4, 8, 16, 32, 64)})
    if cached_ops(info.graph) or remakes(info.graph):
        return cached_space(schedule, target)
    if not schedule.rows_on_lanes:
        return few_rows_space(schedule, info)
    return block_space(schedule, target, rows, bool(_vector_sums(info)))


def block_space(schedule: Schedule, target: Target, rows: int, sums: bool = True) -> Space:
    """Many rows on lanes: register tiles of rows x positions and, where there are ``sums`` of
    vectors, of rows x elements; the length of a block."""
    lanes = schedule.lanes
    high = (1,) if rows else [n for n in (1, 2, 3, 4) if fits_registers(target, n, TILES[0])]
    values: dict[str, Iterable[int]] = {
        "rows": [lanes * vectors for vectors in high],
        "inner_tile": [tile for tile in TILES if fits_registers(target, 1, tile)],
        "inner_block": BLOCKS,
        "unroll": (2, 4, 8),
    }
    if sums:
        values["element_tile"] = [tile for tile in ELEMENTS if fits_registers(target, 1, tile)]
    if lanes == 1:
        return space_around(schedule, {"rows": (1, 2, 4, 8, 16), "inner_block": (16, 32, 64, 128)})

    def why_not(choice: Choice) -> str:
        y = with_choice(schedule, choice)
        vectors = y.rows // lanes
        for tile in (y.inner_tile, y.element_tile) if sums else (y.inner_tile,):
            if not fits_registers(target, vectors, tile):
                return f"{vectors} x {tile} sums do not fit {target.registers} registers"
        return _why_no_block(y, target)

    return space_around(schedule, values, why_not)


def few_rows_space(schedule: Schedule, info: KernelInfo) -> Space:
    """A few rows in registers: memory is walked once, so what matters is how far ahead."""
    values = {"inner_block": (64, 128, 256, 512), "prefetch": (0, 8, 16, 32), "unroll": (1, 2, 4)}
    if info.splits:
        values["inner_part"] = (64, 128, 256, 512, 1024)

    def why_not(choice: Choice) -> str:
        y = with_choice(schedule, choice)
        if y.inner_block % math.lcm(y.inner_tile, y.lanes):
            return f"inner_block {y.inner_block} is no whole number of tiles of {y.inner_tile}"
        part = y.inner_part
        whole = not info.splits or part % y.inner_block == 0 or y.inner_block % part == 0
        return "" if whole else f"inner_part {part} is no whole number of blocks"

    return space_around(schedule, values, why_not)


def cached_space(schedule: Schedule, target: Target) -> Space:
    """Kernels that read packed caches: blocks begin where packed tokens do."""
    values = {"inner_block": (32, 64, 128, 256), "unroll": (1, 2, 4, 8)}

    def why_not(choice: Choice) -> str:
        return _why_no_block(with_choice(schedule, choice), target)

    return space_around(schedule, values, why_not)


def packed_space(schedule: PackedSchedule, target: Target, rows: int) -> Space:
    """Products with packed weights: rows of activations x vectors of weights in registers."""
    tiles = [r for r in (1, 2, 3, 4, 6, 8) if not rows or r <= rows]
    most = min(rows or schedule.item_rows * 2, schedule.item_rows * 2)
    values: dict[str, Iterable[int]] = {
        "vectors": (1, 2, 3, 4),
        "rows": tiles,
        "item_rows": [n for n in (24, 48, 96, 192) if n <= most],  # more would be no other program
        "prefetch": (0, 64, 128, 256, 512) if rows and rows <= 8 else (schedule.prefetch,),
    }

    def why_not(choice: Choice) -> str:
        y = with_choice(schedule, choice)
        if y.item_rows % y.rows:
            return f"item_rows {y.item_rows} is no whole number of tiles of {y.rows} rows"
        if y.rows * y.vectors > target.registers:
            return f"{y.rows} x {y.vectors} sums do not fit {target.registers} registers"
        return ""

    return space_around(schedule, values, why_not)


def _vector_sums(info: KernelInfo) -> list[Reduce]:
    """Sums along the inner axis of whole elements."""
    ops = info.graph.body.ops
    return [op for op in ops if isinstance(op, Reduce) and info.element(op.result)]


def _why_no_block(y: Schedule, target: Target) -> str:
    """Blocks are whole register tiles that begin where they may, and stay in the second cache."""
    unit = math.lcm(y.inner_tile, y.lanes, y.align)
    if y.inner_block % unit:
        return f"inner_block {y.inner_block} is no multiple of {unit}"
    size = 4 * y.inner_block * y.rows
    if size > target.l2_bytes // SCRATCH:
        return f"a block of scores takes {size} bytes, of a cache of {target.l2_bytes}"
    return ""
