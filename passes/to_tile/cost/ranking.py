"""Schedules of a kernel by predicted seconds: the longer of arithmetic and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.ir.core import Op, Value
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.ops_stream import Source
from tilewright.ir.sizes import product
from tilewright.ir.target import Target
from tilewright.ir.types import StreamType, TensorType
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.cost.blocks import BlockModel
from tilewright.passes.to_tile.cost.counts import Number, Section
from tilewright.passes.to_tile.cost.few_rows import FewRowsModel
from tilewright.passes.to_tile.cost.machine import Core, core_of, work_item
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.schedule import Schedule

Sizes = Mapping[str, int]


def columns(choices: Sequence[Choice]) -> dict[str, np.ndarray]:
    """The fields of many choices as arrays."""
    return {name: np.array([c[name] for c in choices], float) for name in choices[0]}


def block_seconds(
    info: KernelInfo,
    schedule: Schedule,
    units: dict[str, int],
    target: Target,
    choices: Sequence[Choice],
    sizes: Sizes,
    threads: int,
) -> np.ndarray:
    """Predicted seconds of each choice of a kernel that walks the inner axis in blocks."""
    kind = BlockModel if schedule.rows_on_lanes else FewRowsModel
    sections, items = kind(info, schedule, units, target).sections(columns(choices), sizes)
    return seconds(sections, items, info, sizes, target, threads, len(choices))


def seconds(
    sections: list[Section],
    items: Number,
    info: KernelInfo,
    sizes: Sizes,
    target: Target,
    threads: int,
    many: int,
) -> np.ndarray:
    """Of all work items on some threads."""
    core = core_of(target)
    item = np.broadcast_to(np.asarray(work_item(sections, core, target), float), many)
    items = np.broadcast_to(np.asarray(items, float), many)
    turns = np.ceil(items / threads)  # the last ones may find no company
    arithmetic = item * turns
    memory = traffic(info, sizes, items, target, core, threads)
    longer, shorter = np.maximum(arithmetic, memory), np.minimum(arithmetic, memory)
    return np.asarray((longer + core.overlap * shorter) / core.hertz)


def traffic(
    info: KernelInfo, sizes: Sizes, items: Number, target: Target, core: Core, threads: int
) -> Number:
    """Cycles that bytes take on their way: once from memory, and for every work item again from the
    nearest cache that holds what its neighbours read."""
    every = sum(bytes_of(p, sizes) for p in info.graph.params)
    shared = sum(_walked(info, op, sizes) for op in info.graph.body.ops)
    grid = max(1, product(a.size for a in info.grid).evaluate(sizes))
    again = np.maximum(items / grid - 1, 0) * grid * shared
    first = every / core.memory_bytes if every > core.far_cache else every / core.far_bytes
    if shared < target.l2_bytes / 2:
        return first / threads
    speed = core.far_bytes if shared < core.far_cache / threads else core.memory_bytes
    return (first + again / speed) / threads


def bytes_of(param: Value, sizes: Sizes) -> float:
    """Bytes of an input."""
    assert isinstance(param.type, TensorType)
    return float(product(param.type.shape).evaluate(sizes) * param.type.dtype.bits / 8)


def _walked(info: KernelInfo, op: Op, sizes: Sizes) -> float:
    """Bytes that a work item reads along the inner axis of a source."""
    if not isinstance(op, Source | CachedStream | StreamDequantize) or not info.varies(op.result):
        return 0.0
    type_ = op.result.type
    assert isinstance(type_, StreamType)
    length = info.inner.size.evaluate(sizes)
    element = product(a.size for a in type_.element).evaluate(sizes)
    return float(length * element * type_.dtype.bits / 8)


def in_order(choices: Sequence[Choice], predicted: np.ndarray) -> list[tuple[Choice, float]]:
    """Best first; of equals the earlier, so that a default stays what it is."""
    order = sorted(range(len(choices)), key=lambda at: (float(predicted[at]), at))
    assert all(math.isfinite(x) for x in predicted), "every schedule has a cost"
    return [(choices[at], float(predicted[at])) for at in order]
