"""The schedule that a kernel has when nothing was tuned: the model's best for typical sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.ops_stream import Contract
from tilewright.ir.target import Target
from tilewright.ir.types import StreamType, TensorType
from tilewright.passes.to_tile.cost.blocks import BlockModel
from tilewright.passes.to_tile.cost.machine import core_of, step_cycles, work_item
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse
from tilewright.passes.to_tile.schedule import (
    Schedule,
    block_length,
    fits_registers,
    row_classes,
)

ROWS = (256, 1024)  # of typical calls: powers of two
LENGTH = 1024
MOST_VECTORS = 3
TILES = 2  # shapes of register tiles for each number of vectors: those of the fastest steps
ALL_HELD = 8  # rows: fewer stay where they are
MARGIN = 1.03  # what is predicted within it is as fast, as far as the model knows


def best_blocks(info: KernelInfo, target: Target, plain: Schedule) -> Schedule:
    """``plain`` with the register tiles that are the fastest for many rows on lanes: predicted time
    over the best's, averaged over typical sizes. Blocks stay as long as caches ask for, and all
    stays as it is if nothing is faster by more than the model's error."""
    if not _known_elements(info):
        return plain
    now = plain.rows // plain.lanes, plain.inner_tile
    shapes = [now, *(x for x in _shapes(target) if x != now)]
    fields = {
        "rows": np.array([float(v * target.lanes) for v, _ in shapes]),
        "inner_tile": np.array([float(t) for _, t in shapes]),
        "element_tile": np.array([float(t) for _, t in shapes]),
        "inner_block": np.array([float(block_length(target, v, t)) for v, t in shapes]),
    }
    try:
        model = BlockModel(analyse(info.graph), plain, last_units(info.graph), target)
    except (UnsupportedError, VerifyError):  # lowering says what is wrong with the kernel
        return plain
    core, found = core_of(target), np.zeros(len(shapes))
    for rows in ROWS:
        sections, items = model.sections(fields, _sizes(info, rows))
        cycles = work_item(sections, core, target) * items
        found += cycles / cycles.min()
    best = int(np.argmin(found))
    if found[0] <= MARGIN * found[best]:
        return plain
    vectors, tile = shapes[best]
    return replace(
        plain,
        rows=vectors * target.lanes,
        inner_tile=tile,
        element_tile=tile,
        inner_block=block_length(target, vectors, tile),
    )


def few_row_classes(info: KernelInfo, target: Target) -> tuple[int, ...]:
    """The row classes of a kernel: those of the target but for eight rows in registers that the
    first-level cache does not hold. Each position reads them all again, and as many on lanes as
    there are take less (a Zen 4, 2,048 and 4,096 terms: 0.6 of it; 1,024: 1.5 times)."""
    held = max((_row_bytes(info, op) for op in info.products), default=0)
    return tuple(
        rows
        for rows in row_classes(target)
        if rows < ALL_HELD or rows >= target.lanes or rows * held <= target.l1_bytes or info.splits
    )


def _row_bytes(info: KernelInfo, op: Contract) -> int:
    """Bytes of a row's side of a product, which is kept in f32; 0 if its length is not known."""
    sides = [v for v in op.operands if not info.varies(v)]
    lengths = [[a.size.constant or 0 for a in info.element(v)] for v in sides]
    return max((4 * math.prod(x) for x in lengths), default=0)


def _known_elements(info: KernelInfo) -> bool:
    """True if all axes inside elements have known lengths, as when a call is compiled."""
    types = [v.type for op in info.graph.body.ops for v in op.results]
    sizes = [a.size for x in types if isinstance(x, StreamType) for a in x.element]
    return all(size.constant is not None for size in sizes)


def _shapes(target: Target) -> list[tuple[int, int]]:
    """Vectors of rows and positions of register tiles worth a look."""
    found = []
    for vectors in range(1, MOST_VECTORS + 1):
        tiles = [t for t in range(2, 17, 2) if fits_registers(target, vectors, t)]
        tiles.sort(key=lambda tile: step_cycles(vectors, tile, target))
        found += [(vectors, tile) for tile in tiles[:TILES]]
    return found


def _sizes(info: KernelInfo, rows: int) -> dict[str, int]:
    """Values of all sizes with so many rows along the last of the rows' axes."""
    found = {name: 1 for name in info.graph.sizes}
    found.update({name: LENGTH for name in info.inner.size.names})
    found.update({name: rows for axis in info.rows[-1:] for name in axis.size.names})
    return found


def last_units(graph: Graph) -> dict[str, int]:
    """The last dimension of every input, as what lies side by side."""
    return {p.hint: len(p.type.shape) - 1 for p in graph.params if isinstance(p.type, TensorType)}
