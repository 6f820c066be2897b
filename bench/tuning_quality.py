"""``tilewright bench figures tuning_quality``: the cost model's order held against measuring it
all.

Every schedule of a kernel's space (a random sample of a large one) is timed in turns with the
default one, so that only ratios matter; the few fastest, the model's first and its first five are
then timed again, longer and all in the same rounds, so that the best is not merely the luckiest.
All ratios are kept, so that other models can be held against them without measuring anything."""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tilewright.bench import machine
from tilewright.bench.records import RESULTS
from tilewright.bench.tuning_workloads import workloads
from tilewright.schedules import KernelForm, kernel_forms

app = typer.Typer(add_completion=False, help=__doc__)
SAMPLE = 300  # schedules of a kernel at most
FINALISTS = 8
SHORTEST = 2e-3  # seconds of one measurement: shorter calls are repeated
SEED = 20261126
MUST, AIM = 1.12, 1.05  # default ÷ best, geometric mean
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}


@app.command()
def main(
    path: Annotated[Path | None, typer.Option(help="JSON to write, and to go on from.")] = None,
    only: Annotated[str, typer.Option(help="Only workloads with this in their name.")] = "",
    sample: Annotated[int, typer.Option(min=2, help="Schedules of a kernel at most.")] = SAMPLE,
    seconds: Annotated[float, typer.Option(help="For each schedule beside the default.")] = 0.4,
    minutes: Annotated[float, typer.Option(help="Stop after so long; go on by a new call.")] = 600,
    threads: Annotated[int, typer.Option(min=1)] = machine.THREADS,
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: the time of this thread alone, for busy machines.")
    ] = "wall",
    report: Annotated[bool, typer.Option("--report", help="Measure nothing: show.")] = False,
) -> None:
    """Measure schedules, or go on with it, and show how good the model's order is."""
    if clock not in CLOCKS:
        raise typer.BadParameter(f"no clock {clock!r}; there are: {', '.join(CLOCKS)}")
    if clock == "cpu" and threads != 1:
        raise typer.BadParameter("the time of one thread is all there is only with --threads 1")
    torch.set_num_threads(threads)
    here = machine.describe_machine(threads)
    file = path or RESULTS / here.kind / f"tuning-{machine.now()[:10]}.json"
    record = opened(file, threads, clock)
    ends = time.monotonic() + 60 * minutes
    for name, make in workloads().items():
        if only not in name or report:
            continue
        for form in kernel_forms(make()):
            Survey(record, file, name, form, CLOCKS[clock], threads, ends).run(sample, seconds)
    show(record)


def opened(file: Path, threads: int, clock: str) -> dict[str, Any]:
    """What an earlier run has written, or a new record. Raises BadParameter for other
    conditions."""
    if not file.exists():
        facts = machine.describe_machine(threads)
        conditions = {"threads": threads, "clock": clock, "seed": SEED}
        return {"command": "tuning", "date": machine.now(), **conditions, "machine": facts.__dict__,
                "kernels": {}}  # fmt: skip
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (record.get("threads"), record.get("clock")) != (threads, clock):
        raise typer.BadParameter(f"{file} was measured with other threads or another clock")
    return record


class Survey:
    """All schedules of one kernel; writes after each, and goes on where an earlier run stopped."""

    def __init__(
        self,
        record: dict[str, Any],
        file: Path,
        workload: str,
        form: KernelForm,
        clock: Clock,
        threads: int,
        ends: float,
    ) -> None:
        self.record, self.file, self.form = record, file, form
        self.clock, self.threads, self.ends = clock, threads, ends
        name = f"{workload}: {form.task.name}"
        self.entry: dict[str, Any] = record["kernels"].setdefault(name, {"workload": workload})
        self.default = dict(form.space.default)
        self.programs = {hashlib.sha256(form.program(self.default).encode()).hexdigest()}

    def run(self, sample: int, seconds: float) -> None:
        """Measures what is missing."""
        fields = list(self.default)
        every = [list(c.values()) for c in self.form.space]
        chosen = every if len(every) <= sample else every[:1] + random.Random(SEED).sample(
            every[1:], sample - 1
        )  # fmt: skip
        start = time.perf_counter()
        predicted = self.form.ranked(self.threads)
        took = time.perf_counter() - start
        self.entry.update(
            sizes=dict(self.form.sizes),
            rows=self.form.variant.rows,
            fields=fields,
            schedules=len(every),
            default=list(self.default.values()),
            predicted=[[[c[f] for f in fields], s] for c, s in predicted],
            ranking_seconds=took,
        )
        known = self.entry.setdefault("ratios", [])
        done = {tuple(values) for values, _ in known}
        for earlier in done:
            self._is_again(list(earlier))
        first = [[c[f] for f in fields] for c, _ in predicted[:5]]  # always among the measured
        for values in [*first, *chosen]:
            if tuple(values) in done or values == self.entry["default"]:
                continue
            if time.monotonic() > self.ends:
                return
            if self._is_again(values):
                continue
            known.append([values, self.ratios([values], seconds)[0]])
            done.add(tuple(values))
            self.write()
        self._finals(known, first, seconds)

    def _is_again(self, values: list[int]) -> bool:
        """True for a schedule whose program is that of one measured before."""
        text = self.form.program(dict(zip(self.default, values, strict=True)))
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self.programs:
            return True
        self.programs.add(digest)
        return False

    def _finals(self, known: list[Any], first: list[list[int]], seconds: float) -> None:
        """The fastest and the model's first ones again, in the same rounds as the default."""
        fastest = [v for v, _ in sorted(known, key=lambda x: float(x[1]))[:FINALISTS]]
        wanted = [*fastest, *(v for v in first if v not in fastest)]
        wanted = [v for v in wanted if v != self.entry["default"]]
        have = [v for v, _ in self.entry.get("finals", [])]
        if all(v in have for v in wanted) or time.monotonic() > self.ends:
            return
        ratios = self.ratios(wanted, 3 * seconds * len(wanted))
        self.entry["finals"] = [[v, r] for v, r in zip(wanted, ratios, strict=True)]
        self.write()

    def ratios(self, choices: list[list[int]], seconds: float) -> list[float]:
        """Times over the default's, which has its turn before and after each."""
        fields = list(self.default)
        calls = [self.form.call(dict(zip(fields, c, strict=True))) for c in choices]
        base = self.form.call(self.default)
        for call in (base, *calls):
            call()
        once = self._timed(base, 1)
        repeat = max(1, round(SHORTEST / max(once, 1e-7)))
        found: list[list[float]] = [[] for _ in calls]
        ends = time.perf_counter() + seconds
        before = self._timed(base, repeat)
        while len(found[0]) < 5 or time.perf_counter() < ends:
            for at, call in enumerate(calls):
                here = self._timed(call, repeat)
                after = self._timed(base, repeat)
                found[at].append(here / math.sqrt(before * after))
                before = after
        return [round(statistics.median(x), 4) for x in found]

    def _timed(self, call: Callable[[], object], repeat: int) -> float:
        start = self.clock()
        for _ in range(repeat):
            call()
        return self.clock() - start

    def write(self) -> None:
        """Keeps what is known so far."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.record) + "\n", encoding="utf-8")
        partial.replace(self.file)


def quality(entry: dict[str, Any]) -> dict[str, float]:
    """Of one kernel: rank correlations over all measured; regret of the model's first and of the
    best of its first five, and the default's time, all over the best's."""
    from scipy.stats import kendalltau, spearmanr

    measured = {tuple(v): float(r) for v, r in entry["ratios"]}
    measured[tuple(entry["default"])] = 1.0
    order = [(tuple(v), s) for v, s in entry["predicted"] if tuple(v) in measured]
    times, model = [measured[v] for v, _ in order], [s for _, s in order]
    final = {tuple(v): float(r) for v, r in entry.get("finals", [])}
    final[tuple(entry["default"])] = 1.0
    best = min(final.values()) if len(final) > 1 else min(times)
    first = [final.get(v, measured[v]) for v, _ in order[:5]]
    several = len(order) > 2 and len(set(times)) > 1 and len(set(model)) > 1
    return {
        "schedules": float(len(order)),
        "spearman": float(spearmanr(model, times)[0]) if several else math.nan,
        "kendall": float(kendalltau(model, times)[0]) if several else math.nan,
        "first": first[0] / best,
        "five": min(first) / best,
        "default": 1.0 / best,
    }


def show(record: dict[str, Any]) -> None:
    """A line for each kernel, then geometric means, held to the goal."""
    found = {n: quality(e) for n, e in record["kernels"].items() if e.get("ratios")}
    names = ("schedules", "spearman", "kendall", "first", "five", "default")
    typer.echo(f"{'kernel':52}" + "".join(f"{name:>10}" for name in names))
    for name, row in found.items():
        typer.echo(f"{name[:51]:52}" + "".join(f"{row[n]:10.3g}" for n in names))
    if not found:
        return
    means = {n: statistics.geometric_mean(row[n] for row in found.values()) for n in names[3:]}
    words = ", ".join(f"{name} ÷ best {value:.3f}" for name, value in means.items())
    verdict = "met" if means["default"] <= MUST else "missed"
    typer.echo(f"geometric means: {words} (default: at most {MUST}, {verdict}; aim {AIM})")


if __name__ == "__main__":
    app()
