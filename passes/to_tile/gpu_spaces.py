"""The space of schedules of each kind of kernel on a GPU, and what a whole choice has to obey.

Blocks under way lie in shared memory, running sums and a block of scores in registers: what needs
more than there is would spill or not start. What the compiler makes of the rest is known once it
has been compiled, for which no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterable

from tilewright.ir.target import Target
from tilewright.passes.to_tile.choices import Choice, Space, space_around, with_choice
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.lowbit.info import has_packed_weights, packed_products
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.program import default_product_schedule
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule, strips_of
from tilewright.passes.to_tile.whole_blocks.schedule import (
    BlockSchedule,
    bytes_read,
    choose_blocks,
    elements,
    padded,
    widest,
)

# bytes of shared memory that one work item may take (CUDA programming guide, table of compute
# capabilities; 64 KB of LDS on CDNA 3)
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
THREADS = {"cuda": 32, "hip": 64}  # of a warp
ACCUMULATORS = 200  # registers of a thread that sums and scores may take, of 255
TILES = (16, 32, 64, 128)


def gpu_space(info: KernelInfo, target: Target, rows: int) -> Space:
    """The schedules of a kernel for up to ``rows`` rows (0: many) on a GPU."""
    if has_packed_weights(info.graph):
        return product_space(info, target, rows)
    return blocks_space(info, target, rows)


def blocks_space(info: KernelInfo, target: Target, rows: int) -> Space:
    """Kernels on whole blocks. Few rows that share what is read lie in one block: its height is
    theirs."""
    schedule = choose_blocks(info, target, rows)
    values: dict[str, Iterable[int]] = {
        "rows": (schedule.rows,) if rows else TILES,
        "inner": TILES,
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4) if target.gpu == "cuda" else (1, 2),
    }
    if schedule.bulk:
        values["bulk"] = (0, 1)

    def why_not(choice: Choice) -> str:
        y = with_choice(schedule, choice)
        reason = _why_not_shared(shared_bytes(y, info), target)
        return reason or _why_not_registers(block_registers(y, info, target))

    return space_around(schedule, values, why_not)


def product_space(info: KernelInfo, target: Target, rows: int) -> Space:
    """Products with packed weights: rows of activations, strips of codes of a turn, half or whole
    blocks of weights."""
    schedule = default_product_schedule(info, target, rows)
    most = max(strips_of(p.packing, True) for p in packed_products(info.graph))
    strips = [n for n in (1, 2, 4, 8, 16) if n <= most and most % n == 0]
    values: dict[str, Iterable[int]] = {
        "rows": (schedule.rows,) if rows else (64, 128, 256),
        "strips": strips,
        "warps": (2, 4, 8),
        "stages": (2, 3, 4) if target.gpu == "cuda" else (1, 2),
    }

    def why_not(choice: Choice) -> str:
        y = with_choice(schedule, choice)
        reason = _why_not_shared(product_bytes(y, info), target)
        threads = y.warps * THREADS[target.gpu]
        return reason or _why_not_registers(
            y.rows * y.height * len(packed_products(info.graph)) // threads
        )

    return space_around(schedule, values, why_not)


def shared_bytes(y: BlockSchedule, info: KernelInfo) -> int:
    """Bytes of the blocks of what rows share that are under way, and of the rows."""
    wide = sum(padded(a.size) for a in elements(info)[:2]) or 1
    read = bytes_read(info)
    under_way = max(1, y.stages) * y.inner * wide * read if info.products else 0
    return under_way + y.rows * (wide // 2) * read


def block_registers(y: BlockSchedule, info: KernelInfo, target: Target) -> int:
    """Registers of a thread for running sums and one block of scores."""
    return y.rows * (widest(info) + y.inner) // (y.warps * THREADS[target.gpu])


def product_bytes(y: ProductSchedule, info: KernelInfo) -> int:
    """Bytes of words and activations of the turns under way."""
    codes = 16 * y.strips
    bits = max(p.packing.bits for p in packed_products(info.graph))
    return y.stages * (codes * y.rows * 2 + codes * LANES * bits // 8)


def _why_not_shared(size: int, target: Target) -> str:
    most = SHARED_BYTES.get(target.cpu, 64 << 10)
    return f"blocks under way take {size} bytes of {most} of shared memory" if size > most else ""


def _why_not_registers(count: int) -> str:
    return f"sums take {count} of 255 registers of a thread" if count > ACCUMULATORS else ""
