"""Sizes of blocks for GPUs, from the shared memory that stages of a loop take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, BOOL, DType
from tilewright.ir.matrix_units import RUNS
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_stream import Gather, Source
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import Axis, StreamType, TensorType
from tilewright.passes.to_tile.kernel_info import KernelInfo, is_row_kernel
from tilewright.passes.to_tile.mask_range import find_mask_range
from tilewright.passes.to_tile.schedule import Schedule

LEAST = 16  # rows, columns and terms of a product that matrix units take
FEW = (16, 64)  # rows that share what is read: those of one block, of all heads of a group
FEWEST = 8  # of caches: columns of a matrix unit (blocks_of_one_warp)
HELD = 4096  # numbers of the rows that four warps hold, 32 in a thread
# sharing out positions, in blocks' time: what a part costs, and putting parts together
BEGINNING, MERGING, LEAST_BLOCKS, MOST_TURNS = 2, 6, 2, 4


@dataclass(frozen=True)
class BlockSchedule:
    """``rows`` of a work item, ``inner`` positions of a block, warps of a work item, and how many
    blocks of what is read are under way at once (``stages``). ``bulk``: blocks are read by the bulk
    copy engine where the memory allows it. ``at_once``: work items that keep a multiprocessor busy,
    for which positions are shared out (parts.py)."""

    rows: int
    inner: int
    warps: int
    stages: int
    bulk: bool = False
    at_once: int = 2

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


def choose_blocks(info: KernelInfo, target: Target, rows: int = 0) -> BlockSchedule:
    """The blocks of a kernel for up to ``rows`` rows (0: any number): running sums and a block of
    scores stay in a thread's registers, the blocks under way in shared memory.

    Measured on an H100 (bench/gpu_attention.py): two work items of 64 rows on a multiprocessor are
    faster than one of 128, since one reads and takes exponentials while the other multiplies.
    """
    wide = widest(info)
    bulk = target.gpu == "cuda" and target.cpu != "sm_80"
    if is_row_kernel(info.graph):  # as many numbers for a thread whatever the length of a row
        rows_held = max(1, min(16, HELD // wide))
        return BlockSchedule(rows_held, 16, max(4, min(16, wide // 1024)), 2)
    if not info.products:
        return BlockSchedule(16, max(16, min(256, 4096 // wide)), 4, 2)
    if bytes_read(info) > 2 or wide > 256:  # products in f32, by the ordinary units
        return BlockSchedule(16 if 0 < rows <= LEAST else 32, 32, 4, 2)
    if _caches(info):  # codes in registers on their way to products
        few, stages = 0 < rows <= LEAST, 2 if target.gpu == "cuda" else 1
        if few:
            return BlockSchedule(LEAST, 64 if wide <= 128 else 32, 4, stages, at_once=4)
        inner = 32 if target.gpu == "cuda" else 16  # with more at once codes would be spilled
        return BlockSchedule(64, inner, 8, stages)
    by_pointers = _is_gathered(info) or (target.gpu == "cuda" and _reads_scores(info, bulk))
    if by_pointers and not 0 < rows <= LEAST:  # a pointer for every number takes registers
        stages = 3 if target.gpu == "cuda" else 1
        return BlockSchedule(64, 64 if wide <= 128 else 32, 8, stages, bulk)
    if rows:
        return _few_rows(target, rows, wide, bulk)
    if wide > 128:
        return BlockSchedule(64, 32, 8, 2, bulk)
    if bulk:
        return BlockSchedule(64, 64, 4, 3, bulk)
    if target.gpu == "cuda":
        return BlockSchedule(128, 32 if reads_masks(info) else 64, 8, 3)
    return BlockSchedule(64 if reads_masks(info) else 128, 32, 8, 1)


def blocks_of_planes(info: KernelInfo, target: Target, rows: int) -> BlockSchedule | None:
    """Triton's blocks of caches in few bits for up to ``rows`` rows, where they should have more
    tokens than ``choose_blocks`` says: so many that a product with each plane of codes (the first
    of every chunk, the second, …) has the terms that units take. Then codes come in their layout
    from the words (backends/triton/blocks.py): 0.17 ms for 0.21 on an H100 (u8 keys and u4 values,
    bench/gpu_decode.py)."""
    caches = _caches(info)
    if target.gpu != "cuda" or not 0 < rows <= LEAST or not caches or bytes_read(info) > 2:
        return None
    usual = choose_blocks(info, target, rows)
    chunks = {op.form.keys: op.form.packing.chunk for op in caches}
    tokens = LEAST * chunks.get(False, 1)
    fits = usual.inner < tokens <= 2 * usual.inner and LEAST * chunks.get(True, 1) <= widest(info)
    return replace(usual, inner=tokens) if fits else None


def blocks_of_one_warp(info: KernelInfo, target: Target, rows: int) -> BlockSchedule | None:
    """The blocks of caches in few bits for up to ``rows`` rows in CUDA C++, where one warp takes a
    work item and its threads unpack words of their own (``to_threads/families.run_of``); None where
    a thread has no room for them.

    Registers after machine code for sm_80, sm_90 and sm_100: of a multiprocessor's quarter three
    warps with 168 each, or two with 255.
    """
    caches, few = _caches(info), FEWEST if rows <= FEWEST else LEAST
    bits = {op.form.keys: op.form.bits for op in caches}
    if target.gpu != "cuda" or not 0 < rows <= LEAST or len(bits) != 2 or reads_masks(info):
        return None
    wide, run = widest(info), max(RUNS[0], *(op.form.packing.chunk for op in caches))
    inner = 4 * run
    if bytes_read(info) > 2 or any(padded(a.size) % inner for a in elements(info)):
        return None
    sums, scores = few * wide // 32, few * inner // 32
    words = sum(bits.values()) * inner * wide // 1024
    held = sums + sums // 2 + words + scores + scores // 2  # in a thread; with bf16 rows
    plain = run == RUNS[0] and _float_dtypes(info) == {BF16}
    plain = plain and all(a.size.constant == padded(a.size) for a in elements(info))
    narrow = held + 2 * bits[False]
    if few == LEAST:
        fits = plain and narrow <= 184
    elif _float_dtypes(info) == {BF16}:
        fits = held <= (210 if target.cpu == "sm_80" else 230)
    else:
        fits = run <= 16 and bits[False] < 8
    mask = find_mask_range(info)  # blocks on both sides of what is seen whole take more
    one_side = not mask.tests and all(bound.upper for bound in mask.bounds)
    three = plain and one_side and narrow <= 116 and all(op.by == "token" for op in caches)
    return BlockSchedule(few, inner, 1, 2, at_once=12 if three else 8) if fits else None


def widest(info: KernelInfo) -> int:
    """The longest axis inside elements, padded."""
    return max((padded(a.size) for a in elements(info)), default=1)


def reads_masks(info: KernelInfo) -> bool:
    """Whether there are tensors over the scores, blocks of which take registers beside these."""
    scales = _beside_codes(info)
    given = (p.type for p in info.graph.params if p not in scales)
    shapes = [x.shape for x in given if isinstance(x, TensorType)]
    return any(len(shape) > 1 and shape[-1] == info.inner.size for shape in shapes)


def _few_rows(target: Target, rows: int, widest: int, bulk: bool) -> BlockSchedule:
    """For rows that one block holds: the bytes that are under way decide, and that blocks of
    ``widest`` numbers leave room for two work items on a multiprocessor."""
    stages = 3 if target.gpu == "cuda" else 1
    inner = 64 if widest <= 128 else 32
    eight = rows > LEAST and target.gpu == "cuda" and target.cpu != "sm_90"  # else they spill
    return BlockSchedule(rows, inner, 8 if eight else 4, stages, bulk)


def row_classes(info: KernelInfo) -> tuple[int, ...]:
    """Upper bounds on the number of rows that share what is read, each with blocks of its own; the
    last class (0) is for any number."""
    fewest = (FEWEST,) if _caches(info) else ()
    return (*fewest, *FEW, 0) if info.products else (0,)


def parts_of(items: int, blocks: int, slots: int) -> int:
    """Into how many parts ``blocks`` blocks of the inner axis are shared out where ``items`` work
    items would walk all of them, and ``slots`` can run at once: the fewest turns through a loop one
    after another.

    A part costs some blocks' time by itself: finding its place, writing and merging partial sums.
    """
    most = min(blocks // LEAST_BLOCKS, -(-slots * MOST_TURNS // max(items, 1)))
    best, least = 1, -(-items // slots) * (blocks + BEGINNING)
    for parts in range(2, most + 1):
        turns = -(-items * parts // slots)
        cost = turns * (-(-blocks // parts) + BEGINNING) + MERGING
        if cost < least:
            best, least = parts, cost
    return best


def elements(info: KernelInfo) -> list[Axis]:
    """The axes inside elements, one for each value that has it."""
    types = [v.type for op in info.graph.body.ops for v in op.results]
    return [a for x in types if isinstance(x, StreamType) for a in x.element]


def _caches(info: KernelInfo) -> list[CachedStream]:
    return [op for op in info.graph.body.ops if isinstance(op, CachedStream)]


def _is_gathered(info: KernelInfo) -> bool:
    """True if elements are read at computed positions, such as pages."""
    ops = info.graph.body.ops
    return any(isinstance(op, Gather) and info.element(op.result) for op in ops)


def _reads_scores(info: KernelInfo, bulk: bool) -> bool:
    """True for a number in memory for every score (a mask) that the copy engine does not bring."""
    sources = (op for op in info.graph.body.ops if isinstance(op, Source))
    wide = (op for op in sources if info.varies(op.result) and info.on_rows(op.result))
    return any(not bulk or _is_bool(op) for op in wide)


def _is_bool(op: Source) -> bool:
    return getattr(op.result.type, "dtype", None) == BOOL


def bytes_read(info: KernelInfo) -> int:
    """Bytes of the widest numbers that blocks are read in."""
    return max((dtype.bits // 8 for dtype in _float_dtypes(info)), default=4)


def _float_dtypes(info: KernelInfo) -> set[DType]:
    """The dtypes of what blocks are read in, scales of caches aside."""
    scales = _beside_codes(info)
    return {
        p.type.dtype
        for p in info.graph.params
        if isinstance(p.type, TensorType) and p.type.dtype.is_float and len(p.type.shape) > 1
        if p not in scales
    }


def _beside_codes(info: KernelInfo) -> set[Value]:
    """Scales and zeros of caches, and their words."""
    return {v for op in _caches(info) for v in op.operands}
