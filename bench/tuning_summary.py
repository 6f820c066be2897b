"""``python -m tilewright.bench.tuning_summary FILE``: what ``tuning_quality`` and ``tuning_budget``
have measured, as a record of a few figures for each kind of kernel, which the pages show."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.bench import tuning_budget, tuning_quality
from tilewright.bench.machine import Machine
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.tuning_budget import regret
from tilewright.bench.tuning_quality import quality

KINDS = {  # by the first word of a workload
    "attention": "attention of many rows",
    "decode": "attention of a few rows",
    "linear": "products with weights in few bits",
}
OTHERS = "rows and fused neighbours"
ALL = "all kernels"
Entries = dict[str, dict[str, Any]]


def main(
    file: Annotated[Path, typer.Argument(help="JSON of tuning_quality.")],
    save: Annotated[bool, typer.Option("--save", help="Write it into bench/results/.")] = False,
) -> None:
    """Sum up what was measured of schedules."""
    record = record_of(json.loads(file.read_text(encoding="utf-8")))
    for row in record.quantities:
        verdict = {None: "", True: " (met)", False: " (MISSED)"}[row.met]
        typer.echo(f"{row.name}: {row.value:.3f}{verdict}")
    if save:
        typer.echo(f"written to {record.save()}")


def record_of(survey: Mapping[str, Any]) -> Record:
    """Geometric means over the kernels of a survey, by kind and over all, held to the goals."""
    kernels: Entries = {n: e for n, e in survey["kernels"].items() if e.get("finals")}
    quantities: list[Quantity] = []
    for kind, entries in _by_kind(kernels):
        quantities += _quantities(kind, entries)
    details = {"seed": survey["seed"], "clock": survey["clock"], "threads": survey["threads"]}
    machine = Machine(**survey["machine"])
    return Record("schedules", survey["date"], machine, (), tuple(quantities), details)


def _by_kind(kernels: Entries) -> Iterator[tuple[str, Entries]]:
    found: dict[str, Entries] = {}
    for name, entry in kernels.items():
        kind = KINDS.get(entry["workload"].split()[0], OTHERS)
        found.setdefault(kind, {})[name] = entry
    yield from found.items()
    if kernels:
        yield ALL, kernels


def _quantities(kind: str, entries: Entries) -> Iterator[Quantity]:
    each = {name: quality(entry) for name, entry in entries.items()}
    whole = kind == ALL
    for figure, key, goal in (
        ("default schedule ÷ best", "default", Goal(tuning_quality.MUST, tuning_quality.AIM)),
        ("best of the model's first five ÷ best", "five", Goal()),
    ):
        values = {name: row[key] for name, row in each.items()}
        yield Quantity(
            f"{figure}, {kind} ({len(values)})",
            statistics.geometric_mean(values.values()),
            "",
            goal if whole else Goal(),
            {"kernels": values},
        )
    order = {name: row["spearman"] for name, row in each.items() if not math.isnan(row["spearman"])}
    if order:
        yield Quantity(
            f"rank correlation (Spearman) of the model's order, median, {kind} ({len(order)})",
            statistics.median(order.values()),
            "",
            Goal(),
            {"kernels": order},
        )
    tuned = {name: regret(entry) for name, entry in entries.items() if "tuned" in entry}
    if tuned:
        yield Quantity(
            f"found within 60 s ÷ best, {kind} ({len(tuned)})",
            statistics.geometric_mean(tuned.values()),
            "",
            Goal(tuning_budget.MUST, tuning_budget.AIM) if whole else Goal(),
            {"kernels": tuned},
        )


if __name__ == "__main__":
    typer.run(main)
