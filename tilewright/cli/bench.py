"""``tilewright bench``: the measurements of ``tilewright.bench``, imported when asked for."""

from __future__ import annotations

import importlib
import sys

import typer

WHAT = (
    "attention",
    "cross_entropy",
    "demo",
    "expert_memory",
    "experts",
    "kv_cache",
    "lowbit",
    "masks",
    "placement",
    "readme",
    "routing",
    "simulator",
)


def bench(
    context: typer.Context,
    what: str = typer.Argument(
        help="What to measure: attention, cross_entropy, demo, expert_memory, experts, kv_cache, "
        "lowbit, masks, placement, routing, simulator; or readme (the table)."
    ),
) -> None:
    """Measure against PyTorch; options after the name go to it (``--json``, ``--save``, …)."""
    if what not in WHAT:
        raise typer.BadParameter(f"{what!r} is none of {', '.join(WHAT)}")
    module = importlib.import_module(f"tilewright.bench.{what}")
    sys.argv = [f"tilewright bench {what}", *context.args]
    module.app()
