"""The figures of attention, as a command: ``python -m tilewright.bench.attention``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from tilewright.bench import bundles, costs, machine, workloads
from tilewright.bench.command import (
    AsJson,
    Quick,
    Save,
    Seconds,
    begin,
    deliver,
    note,
    require_whole,
)
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Effort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ERROR_GOAL = Goal(2.0, 1.0)
READ_AIM = 0.9  # of the machine's bandwidth


@app.command()
def attention(
    as_json: AsJson = False,
    save: Save = False,
    quick: Quick = False,
    only: Annotated[str, typer.Option(help="Only comparisons with this in their name.")] = "",
    seconds: Seconds = 4.0,
) -> None:
    """Measures attention against PyTorch's own, and what compiling and calling costs."""
    require_whole(save, quick, only)
    record = run(Effort(seconds=seconds), quick=quick, only=only)
    deliver(record, as_json, save)


def run(effort: Effort, *, quick: bool = False, only: str = "") -> Record:
    """All comparisons with ``only`` in their names; the other figures too if it is empty.

    ``quick`` shrinks everything to seconds and holds nothing to its goals.
    """
    date, here, effort = begin(effort, quick)
    rows = tuple(_comparisons(here, effort, quick, only))
    quantities = () if only else (*_derived(rows, here), *_costs(quick))
    record = Record("attention", date, here, rows, quantities)
    return record.without_goals() if quick else record


def _comparisons(
    here: machine.Machine, effort: Effort, quick: bool, only: str
) -> Iterator[Comparison]:
    table: list[tuple[workloads.Workload, Callable[..., Comparison]]] = [
        *((workload, workloads.compare) for workload in workloads.WORKLOADS),
        (workloads.NAIVE, workloads.compare_naive),
    ]
    for workload, compare in table:
        if only in workload.name:
            note(workload.name)
            yield compare(workload.smaller() if quick else workload, here.wide, effort)


def _derived(rows: tuple[Comparison, ...], here: machine.Machine) -> list[Quantity]:
    """Figures that follow from the comparisons: the worst error ratio, and decode's bandwidth."""
    errors = {r.name: r.our_error / r.their_error for r in rows if r.our_error and r.their_error}
    worst = max(errors.values(), default=0.0)
    out = {
        "": Quantity("largest error, as a multiple of torch's", worst, "times", ERROR_GOAL, errors)
    }
    for row in rows:
        problem = row.name.removesuffix(", packed")  # ours is the same call beside either peer
        if row.unit == "GB/s" and row.work and here.read_gb_per_s and problem not in out:
            share = row.work / row.ours.median / here.read_gb_per_s
            name = f"{problem}: its time, as a multiple of reading K and V"
            goal = Goal(None, round(1 / READ_AIM, 2))
            out[problem] = Quantity(name, 1 / share, "times", goal)
    return list(out.values())


def _costs(quick: bool) -> list[Quantity]:
    if quick:
        return [
            costs.scratch_memory(512),
            *costs.first_calls(1),
            *bundles.bundle_calls(1),
            costs.call_overhead(20, 1),
            costs.compiled_forms(10, 40),
        ]
    return [
        costs.scratch_memory(),
        *costs.first_calls(),
        *bundles.bundle_calls(),
        costs.call_overhead(),
        costs.compiled_forms(),
    ]


if __name__ == "__main__":
    app()
