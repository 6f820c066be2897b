"""In which order a kernel's sums are formed, where the caller wants to know it.

``ANY``: as the schedule likes. ``BATCH``: a row's numbers do not depend on the rows beside it.
``FIXED``: nor on the lanes, registers and instructions of the machine, so that all back ends give
the same bits.

Rows lie on lanes for any number of rows: then a row is computed as if it were alone, and how many
rows share a register, a block or a work item changes nothing. What is left of the schedule in a
row's numbers is where blocks of the inner axis begin and end: at multiples of one length, whatever
masks hide. What a mask hides inside a block joins sums as exact zeros.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import rounding
from tilewright.ir.core import Graph, Op
from tilewright.ir.dtypes import BF16
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_stream import Roll
from tilewright.ir.target import WIDTHS, Target, named_target
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.to_tile.cached.info import cached_ops
from tilewright.passes.to_tile.cost.defaults import best_blocks
from tilewright.passes.to_tile.kernel_info import KernelInfo, chooses, is_routing, is_row_kernel
from tilewright.passes.to_tile.lowbit.info import has_packed_weights
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.schedule import (
    Schedule,
    choose_schedule,
    row_classes,
    row_schedule,
)

ANY, BATCH, FIXED = "", "batch", rounding.FIXED
INNER_BLOCK = 64  # positions between two updates of running statistics, on every machine
ROW_PARTS = 16  # sums of a row that are formed beside each other, on every machine
FEW = (4, 8)  # classes of few rows, on vectors of as many lanes


def ordered_classes(graph: Graph, target: Target) -> tuple[int, ...]:
    """Numbers of rows that have forms of their own: they differ in their speed only."""
    if target.gpu or target.lanes == 1 or is_row_kernel(graph) or is_routing(graph):
        return ()
    if has_packed_weights(graph):  # weights' rows lie on lanes, each row of x is by itself
        return row_classes(target)
    target = _that_rolls(graph, target)
    few = () if target.bf16_dot and _has_bf16(graph) else FEW  # one width has the instruction
    return (*(n for n in few if n < target.lanes), target.lanes, 0)


def ordered_target(graph: Graph, target: Target, rows: int, order: str) -> Target:
    """The target as a form for up to ``rows`` rows uses it (0: many)."""
    if order == ANY:
        return target
    if target.gpu == "cuda" and order == FIXED:
        return named_target("scalar")  # a thread does what a lane does
    if target.gpu:
        raise UnsupportedError(f"{graph.name}: no program for {target.name} has a known order")
    if order == FIXED and target.bf16_dot:  # it rounds in an order of its own
        target = replace(target, bf16_dot=False)
    target = _that_rolls(graph, target)
    by_itself = is_row_kernel(graph) or has_packed_weights(graph)
    if rows in FEW and rows < target.lanes and not by_itself:
        return target.with_lanes(rows)
    return target


def _that_rolls(graph: Graph, target: Target) -> Target:
    """The target with vectors that what a kernel rolls is made of whole ones of, ends and middle:
    heads of 80 numbers, the halves of which change places, with 8 lanes."""
    rolls = [op for op in graph.body.ops if isinstance(op, Roll)]
    lengths = [a.size.constant for op in rolls for a in _element(op) if a.name == op.axis]
    parts = [*(op.shift for op in rolls), *(n for n in lengths if n is not None)]
    if target.lanes not in WIDTHS or all(n % target.lanes == 0 for n in parts):
        return target
    fits = [n for n in WIDTHS if n < target.lanes and all(x % n == 0 for x in parts)]
    return target.with_lanes(max(fits)) if fits else target


def _element(op: Op) -> tuple[Axis, ...]:
    kind = op.result.type
    return kind.element if isinstance(kind, StreamType) else ()


def ordered_schedule(info: KernelInfo, target: Target, rows: int, order: str) -> Schedule:
    """The schedule in a known order. Raises UnsupportedError for kernels that have none."""
    graph = info.graph
    if is_routing(graph):
        what = "routes tokens" if chooses(graph) else "computes a vector or a number, not rows"
        raise UnsupportedError(f"{graph.name} {what}: it has no form in a fixed order")
    if cached_ops(graph) or remakes(graph):
        what = "reads a low-bit cache or makes keys again"
        raise UnsupportedError(f"{graph.name} {what}: it has no form in a fixed order")
    if has_packed_weights(graph):
        return choose_schedule(target, rows)
    if is_row_kernel(graph):
        return replace(
            row_schedule(target, info.longest_element), row_parts=ROW_PARTS if order == FIXED else 0
        )
    schedule = choose_schedule(target, target.lanes if rows and target.lanes > 1 else 0)
    if not rows and target.lanes > 1 and info.products:
        schedule = best_blocks(info, target, schedule)
    tile = 1 << (schedule.inner_tile.bit_length() - 1)  # whole tiles make whole blocks
    return replace(
        schedule,
        inner_tile=tile,
        inner_block=INNER_BLOCK,
        align=INNER_BLOCK,
        in_order=True,
        row_parts=ROW_PARTS,  # classes of rows have different lanes
    )


def _has_bf16(graph: Graph) -> bool:
    types = [v.type for op in graph.body.ops for v in op.results]
    return any(isinstance(x, StreamType) and x.dtype == BF16 for x in types)
