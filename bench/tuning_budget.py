"""``python -m tilewright.bench.tuning_budget``: how much a search of a minute leaves on the table.

For every kernel whose schedules ``tilewright bench figures tuning_quality`` has measured: a search
within the budget and without knowing any of that, then what it chose, the best one known and the
default in turns. The best of the three counts as the best of all.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from tilewright.bench import machine
from tilewright.bench.tuning_quality import CLOCKS, Survey, opened
from tilewright.bench.tuning_workloads import workloads
from tilewright.schedules import KernelForm, kernel_forms, tuned

app = typer.Typer(add_completion=False, help=__doc__)
MUST, AIM = 1.03, 1.01  # chosen within the budget ÷ best known, geometric mean


@app.command()
def main(
    path: Annotated[Path, typer.Argument(help="JSON of tuning_quality, which is added to.")],
    budget: Annotated[float, typer.Option(help="Seconds of a search.")] = 60.0,
    seconds: Annotated[float, typer.Option(help="Of the comparison, each schedule.")] = 1.5,
    only: Annotated[str, typer.Option(help="Only workloads with this in their name.")] = "",
    minutes: Annotated[float, typer.Option(help="Stop after so long; go on by a new call.")] = 600,
    threads: Annotated[int, typer.Option(min=1)] = machine.THREADS,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing: show.")] = False,
) -> None:
    """Search within a budget, and show how far what it chose is from the best known."""
    torch.set_num_threads(threads)
    record = opened(path, threads, "wall")
    ends = time.monotonic() + 60 * minutes
    for name, make in workloads().items():
        if only not in name or report:
            continue
        for form in kernel_forms(make()):
            survey = Survey(record, path, name, form, CLOCKS["wall"], threads, ends)
            if time.monotonic() < ends and "tuned" not in survey.entry:
                _compare(survey, form, budget, seconds)
    show(record)


def _compare(survey: Survey, form: KernelForm, budget: float, seconds: float) -> None:
    """Adds what the search chose, and all ratios to the default's time."""
    finals = survey.entry.get("finals")
    if not finals:
        return  # its schedules were not measured to the end
    with TemporaryDirectory() as folder:
        choice, trials = tuned(form, budget, Path(folder) / "tuning.sqlite3")
    best = min(finals, key=lambda x: float(x[1]))[0]
    found = [choice[field] for field in survey.entry["fields"]]
    again = [v for v in (found, best) if v != survey.entry["default"]]
    unique = again[:1] if len(again) == 2 and again[0] == again[1] else again
    ratios = survey.ratios(unique, seconds * len(unique)) if unique else []
    kept = [[v, r] for v, r in zip(unique, ratios, strict=True)]
    survey.entry["tuned"] = {
        "seconds": budget, "trials": trials, "chosen": found, "best": best, "ratios": kept,
    }  # fmt: skip
    survey.write()


def regret(entry: dict[str, Any]) -> float:
    """Time of what the search chose over that of the best known, which may be the same."""
    tuned_ = entry["tuned"]
    times = {tuple(entry["default"]): 1.0, **{tuple(v): float(r) for v, r in tuned_["ratios"]}}
    return times[tuple(tuned_["chosen"])] / min(times.values())


def show(record: dict[str, Any]) -> None:
    """A line for each kernel, then the geometric mean, held to the goal."""
    found = {n: e for n, e in record["kernels"].items() if "tuned" in e}
    for name, entry in found.items():
        what = entry["tuned"]
        typer.echo(f"{name[:51]:52}{what['trials']:6} trials{regret(entry):8.3f} ÷ best")
    if found:
        mean = statistics.geometric_mean(regret(entry) for entry in found.values())
        verdict = "met" if mean <= MUST else "missed"
        typer.echo(f"geometric mean {mean:.3f} (at most {MUST}, {verdict}; aim {AIM})")


if __name__ == "__main__":
    app()
