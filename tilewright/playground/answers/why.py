"""Why the kernels are what they are: loops, masks, schedules, as ``tilewright explain`` has it."""

from __future__ import annotations

from typing import Any

from tilewright.cli.compile import load_target
from tilewright.cli.explanation import KernelFacts, kernel_facts
from tilewright.playground.answers.tiles import kernels
from tilewright.playground.request import Request


def answer(request: Request) -> dict[str, Any]:
    """Facts of every kernel on streams; tile programs have none."""
    target = load_target(request.target)
    found = [graph for graph in kernels(request) if graph.level == "stream"]
    return {
        "target": target.name,
        "kernels": [_facts(kernel_facts(graph, target)) for graph in found],
    }


def _facts(kernel: KernelFacts) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "problem": kernel.problem,
        "deepest": kernel.deepest,
        "channels": len(kernel.channels),
        "grid": list(kernel.grid),
        "rows": list(kernel.rows),
        "stream": kernel.inner,
        "shared_out": kernel.shared_out,
        "masks": [*kernel.intervals, *kernel.tests],
        "schedules": _schedules(kernel),
        "packings": list(kernel.packings),
    }


def _schedules(kernel: KernelFacts) -> list[dict[str, Any]]:
    """Of every row class (``up_to`` 0: any number of rows)."""
    found = [
        {
            "up_to": facts.up_to_rows,
            "kind": "rows on lanes" if facts.schedule.rows_on_lanes else "rows in registers",
            "rows": facts.schedule.rows,
            "tile": f"{facts.schedule.inner_tile} x {facts.schedule.rows}",
            "block": facts.schedule.inner_block,
        }
        for facts in kernel.layouts
    ]
    return found + [
        {
            "up_to": facts.up_to_rows,
            "kind": "packed weights on lanes",
            "rows": facts.schedule.rows,
            "tile": f"{facts.schedule.rows} x {facts.schedule.vectors * facts.schedule.lanes}",
            "block": facts.schedule.item_rows,
        }
        for facts in kernel.packed
    ]
