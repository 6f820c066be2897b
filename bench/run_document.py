"""The document of a run: medians, ratios and their intervals from what its sittings brought."""

from __future__ import annotations

import statistics

from tilewright.bench.method.roofs import Roofs
from tilewright.bench.method.statistics import CONFIDENCE, Sittings, estimate, ratios
from tilewright.bench.providers.catalogue import OURS
from tilewright.bench.report import document as d
from tilewright.bench.running import Finished, Row, Run

KEPT_DIGITS = 5


def document_of(finished: Finished) -> d.Document:
    """Everything of a run that is over."""
    run, options = finished.run, finished.run.options
    return d.Document(
        format=d.FORMAT,
        version=d.VERSION,
        suite=run.suite.name,
        about=run.suite.about,
        date=finished.date,
        seconds=finished.seconds,
        machine=finished.here,
        roofs=finished.roofs,
        method=d.Method(
            options.sittings,
            float(options.seconds),
            CONFIDENCE,
            run.evicted,
            options.quick,
            options.caches,
            options.processes,
        ),
        noise=_noise(run),
        providers=run.states,
        launches=[
            d.Launch(section, name, row.contenders[name].form, estimate(samples))
            for section, row in run.launches.items()
            for name, samples in row.warm.items()
        ],
        problems=[_problem(row, finished.roofs) for row in run.rows],
    )


def _noise(run: Run) -> d.Noise:
    """The compute kernel takes its turn among the problems of every kind; so does memory."""

    def spread(samples: list[float]) -> tuple[float, float]:
        if len(samples) < 2:
            return (samples[0] if samples else 0.0), 0.0
        tenths = statistics.quantiles(samples, n=10)
        middle = statistics.median(samples)
        return middle, (tenths[-1] - tenths[0]) / middle

    compute = spread([s for row in run.rows for part in row.compute for s in part])
    memory = spread([s for row in run.rows for part in row.memory for s in part])
    return d.Noise(*compute, *memory, run.loads)


def _problem(row: Row, roofs: Roofs) -> d.ProblemResults:
    problem = row.problem
    floors, bounds = {}, {}
    for state in d.STATES:
        floors[state], bounds[state] = roofs.floor(
            problem.work, problem.arithmetic, state == "warm"
        )

    def times(name: str, state: str) -> d.Times | None:
        samples = getattr(row, state)
        if name not in samples:
            return None
        mine = samples.get(OURS)
        by_bytes = bounds[state] == "bytes" and row.memory
        beside = row.memory if by_bytes else row.compute
        time_ = estimate(samples[name])
        return d.Times(
            time=time_,
            ratio=None if name == OURS or not mine else estimate(ratios(mine, samples[name])),
            reference=estimate(ratios(beside, samples[name])),
            roof=floors[state] / time_.median,
            samples=_short(samples[name]),
        )

    return d.ProblemResults(
        name=problem.name,
        section=problem.section,
        parameters=dict(problem.parameters),
        operations=float(problem.work.operations),
        bytes=float(problem.work.bytes),
        arithmetic=problem.arithmetic,
        size=float(problem.size),
        series=problem.series,
        headline=problem.headline,
        tolerance=problem.tolerance,
        floors=floors,
        bounds=bounds,
        results=[
            contender.result(name, times(name, "warm"), times(name, "cold"))
            for name, contender in row.contenders.items()
        ],
    )


def _short(samples: Sittings) -> list[list[float]]:
    return [[float(f"{s:.{KEPT_DIGITS}g}") for s in part] for part in samples]
