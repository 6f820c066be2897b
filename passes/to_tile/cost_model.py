"""Which schedules of a kernel are likely the fastest: all of its space, ranked within a second.

Kernels that walk an axis in blocks are counted in closed form (cost/blocks.py, cost/few_rows.py);
of others, whose spaces are small, a few programs are written and their instructions counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.cached.info import cached_ops
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.cost.counts import Section
from tilewright.passes.to_tile.cost.defaults import last_units
from tilewright.passes.to_tile.cost.gpu import gpu_seconds
from tilewright.passes.to_tile.cost.packed import PackedModel
from tilewright.passes.to_tile.cost.ranking import block_seconds, in_order, seconds
from tilewright.passes.to_tile.cost.walk import walk_program, work_items
from tilewright.passes.to_tile.kernel_info import KernelInfo, is_row_kernel
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lower import default_schedule, kernel_to_tile
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.spaces import kernel_info, kernel_space


def ranked(
    graph: Graph,
    target: Target,
    rows: int,
    sizes: Mapping[str, int],
    threads: int,
    units: dict[str, int] | None = None,
) -> list[tuple[Choice, float]]:
    """Every schedule of a kernel's space with its predicted seconds, best first.

    ``sizes``: of a call; ``units``: the dimension of each input with stride one (None: the last).
    Raises UnsupportedError for kernels without such a space.
    """
    choices = list(kernel_space(graph, target, rows))
    units = last_units(graph) if units is None else units
    info = kernel_info(graph)
    if target.gpu:
        each = [gpu_seconds(graph, info, target, rows, c, sizes) for c in choices]
        return in_order(choices, np.array(each))
    schedule = default_schedule(info, target, rows)
    if has_closed_form(info, schedule):
        assert isinstance(schedule, Schedule)
        found = block_seconds(info, schedule, units, target, choices, sizes, threads)
        return in_order(choices, found)
    if isinstance(schedule, PackedSchedule) and target.lanes > 1:
        model = PackedModel.of(graph, info, target, rows, units)
        sections, items = model.sections(choices, info, sizes)
        return in_order(
            choices, seconds(sections, items, info, sizes, target, threads, len(choices))
        )
    found = np.array(
        [_by_walking(graph, info, target, rows, units, c, sizes, threads) for c in choices]
    )
    return in_order(choices, found)


def has_closed_form(info: KernelInfo, schedule: Schedule | PackedSchedule) -> bool:
    """True for kernels whose instructions are counted without writing a program."""
    special = bool(cached_ops(info.graph)) or bool(remakes(info.graph)) or is_row_kernel(info.graph)
    return isinstance(schedule, Schedule) and schedule.lanes > 1 and not special


def _by_walking(
    graph: Graph,
    info: KernelInfo,
    target: Target,
    rows: int,
    units: dict[str, int],
    choice: Choice,
    sizes: Mapping[str, int],
    threads: int,
) -> float:
    program = kernel_to_tile(graph, target, rows, units, choice)
    items = sum(1 for _ in work_items(program, sizes))
    sections: Sequence[Section] = walk_program(program, sizes, target)
    shares = [Section(x.name, x.counts, x.turns / max(items, 1), x.chain) for x in sections]
    return float(seconds(shares, items, info, sizes, target, threads, 1)[0])


__all__ = ["UnsupportedError", "ranked"]
