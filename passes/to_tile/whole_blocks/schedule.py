"""Sizes of blocks for GPUs, from the shared memory that stages of a loop take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.schedule import Schedule

LEAST = 16  # rows, columns and terms of a product that matrix units take


@dataclass(frozen=True)
class BlockSchedule:
    """``rows`` of a work item, ``inner`` positions of a block, warps of a work item, and how many
    blocks of what is read are under way at once (``stages``). ``bulk``: blocks are read by the bulk
    copy engine where the memory allows it."""

    rows: int
    inner: int
    warps: int
    stages: int
    bulk: bool = False

    def plain(self) -> Schedule:
        """What the passes shared with CPUs read of a schedule."""
        return Schedule(True, 1, self.rows, 1, 1, self.inner, 1, 1, False, inner_part=self.inner)


def power_of_two(number: int) -> int:
    """The next power of two, at least one."""
    return 1 << max(0, number - 1).bit_length()


def padded(size: Size, product: bool = True) -> int:
    """How long an element's axis is in a tile."""
    known = size.constant
    assert known is not None
    return max(LEAST if product else 1, power_of_two(known))


def choose_blocks(info: KernelInfo, target: Target) -> BlockSchedule:
    """The blocks of a kernel: running sums and a block of scores stay in a thread's registers, the
    blocks under way in shared memory.

    Measured on an H100 (bench/gpu_attention.py): two work items of 64 rows on a multiprocessor are
    faster than one of 128, since one reads and takes exponentials while the other multiplies.
    """
    widest = max((padded(a.size) for a in _elements(info)), default=1)
    bulk = target.gpu == "cuda" and target.cpu != "sm_80"
    if not info.products:
        return BlockSchedule(16, max(16, min(256, 4096 // widest)), 4, 2)
    if _bytes_read(info) > 2 or widest > 256:  # products in f32, by the ordinary units
        return BlockSchedule(32, 32, 4, 2)
    if widest > 128:
        return BlockSchedule(64, 32, 8, 2, bulk)
    if bulk:
        return BlockSchedule(64, 64, 4, 3, bulk)
    if target.gpu == "cuda":
        return BlockSchedule(128, 64, 8, 3)
    return BlockSchedule(128, 64, 8, 1)


def _elements(info: KernelInfo) -> Iterable[Axis]:
    types = [v.type for op in info.graph.body.ops for v in op.results]
    return [a for x in types if isinstance(x, StreamType) for a in x.element]


def _bytes_read(info: KernelInfo) -> int:
    """Bytes of the widest numbers that blocks are read in."""
    sizes = [
        p.type.dtype.bits // 8
        for p in info.graph.params
        if isinstance(p.type, TensorType) and p.type.dtype.is_float and len(p.type.shape) > 1
    ]
    return max(sizes, default=4)
