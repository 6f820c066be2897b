"""The figures of masks and scores, as a command: ``python -m tilewright.bench.masks``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tilewright.bench import mask_workloads as w
from tilewright.bench.command import AsJson, Only, Quick, Save, Seconds, begin, deliver, note
from tilewright.bench.mask_workloads import NO_GOAL, Workload
from tilewright.bench.records import Comparison, Goal, Quantity, Record
from tilewright.bench.timing import Effort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SHARE_GOAL = Goal(1.25)
FLEX_GOAL = Goal(1.3)
FIRST_GOAL = Goal(1.0)  # seconds
LENGTH_GOAL = Goal(1.0)  # milliseconds
NOTHING = Goal(0.0)

# dense attention is measured beside each: heads only as many as keep both threads busy
SHARES = (
    Workload("window 256, L8192", w.window, 4, 8192),
    Workload("documents of 512, L8192", w.documents, 4, 8192),
    Workload("documents of 512, causal, L8192", w.causal_documents, 4, 8192),
    Workload("causal, L4096", w.causal, 8, 4096),
)
FLEX = (
    Workload("causal, H8 L2048 D64", w.causal, 8, 2048, FLEX_GOAL),
    Workload("ALiBi, H8 L2048 D64", w.alibi, 8, 2048, FLEX_GOAL, score=True),
    Workload("soft cap, H8 L2048 D64", w.soft_cap, 8, 2048, FLEX_GOAL, score=True),
    Workload("window 256, H8 L2048 D64", w.window, 8, 2048, FLEX_GOAL),
)


@app.command()
def masks(
    as_json: AsJson = False,
    save: Save = False,
    quick: Quick = False,
    flex: Annotated[
        bool, typer.Option(help="Compile flex_attention, too (minutes; needs a C++ compiler).")
    ] = True,
    only: Only = "",
    seconds: Seconds = 6.0,
) -> None:
    """Measures masks and scores: time by what they show, beside flex_attention, first calls."""
    if save and (quick or only or not flex):
        raise typer.BadParameter("only a whole run is saved: leave out --quick, --no-flex, --only")
    record = run(Effort(seconds=seconds), quick=quick, flex=flex, only=only)
    deliver(record, as_json, save)


def run(effort: Effort, *, quick: bool = False, flex: bool = True, only: str = "") -> Record:
    """All figures with ``only`` in their names. ``quick`` holds nothing to its goals."""
    date, here, effort = begin(effort, quick)
    details: dict[str, Any] = {}
    shares = tuple(_shares(effort, quick, only))
    rows = tuple(_comparisons(effort, quick, flex, only, details))
    firsts = tuple(first_calls(1 if quick else 3, flex)) if only in "first call" else ()
    record = Record("masks", date, here, rows, (*shares, *firsts), details)
    return record.without_goals() if quick else record


def _chosen(workloads: tuple[Workload, ...], quick: bool, only: str) -> Iterator[Workload]:
    for workload in workloads:
        if only in workload.name:
            note(workload.name)
            yield workload.smaller() if quick else workload


def _shares(effort: Effort, quick: bool, only: str) -> Iterator[Quantity]:
    for workload in _chosen(SHARES, quick, only):
        found = w.masked_share(workload, effort)
        name = f"{workload.name}: time, as a multiple of dense time x visible share"
        yield Quantity(name, found.pop("value"), "times", SHARE_GOAL, found)


def _comparisons(
    effort: Effort, quick: bool, flex: bool, only: str, details: dict[str, Any]
) -> Iterator[Comparison]:
    """Rows beside flex_attention, whose seconds of compiling go into ``details``; and SDPA."""
    for workload in _chosen(FLEX, quick, only):
        if flex:
            row, compiling = w.compare_flex(workload, effort)
            details.setdefault("flex_compile_seconds", {})[row.name] = compiling
            yield row
        if workload.make is w.causal:
            yield w.compare_sdpa(workload, effort)


def first_calls(runs: int, flex: bool) -> Iterator[Quantity]:
    """First calls in new processes with empty caches, the best of ``runs`` (a machine that does
    something else only makes them longer); second lengths, the median of ``runs``."""
    found = [new_process("ours") for _ in range(runs)]
    best = {
        name: min(run[name] for run in found)
        for name in ("first_in_the_process", "new_mask", "new_score")
    }
    details = {"runs": found}
    yield Quantity("first call of a new mask", best["new_mask"], "s", FIRST_GOAL, details)
    yield Quantity("first call of a new score", best["new_score"], "s", FIRST_GOAL)
    name = "first call of a process, with its imports"
    yield Quantity(name, best["first_in_the_process"], "s", NO_GOAL)
    name = "second length of the same mask, beyond a steady call"
    beyond = statistics.median(run["second_length"] for run in found)
    yield Quantity(name, beyond * 1e3, "ms", LENGTH_GOAL)
    more = max(run["kernels_more"] for run in found)
    yield Quantity("kernels compiled for five more lengths", more, "", NOTHING)
    if flex:
        theirs = new_process("flex")
        for part, title in (("new_mask", "mask"), ("new_score", "score")):
            name = f"flex_attention: first call of a new {title}"
            yield Quantity(name, theirs[part], "s", NO_GOAL, theirs)


def new_process(side: str) -> dict[str, Any]:
    """What ``first_mask`` prints in a new process with empty caches."""
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        command = [sys.executable, "-m", "tilewright.bench.first_mask", side, folder]
        caches = {"TILEWRIGHT_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=os.environ | caches, check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    app()
