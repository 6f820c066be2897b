"""Runs a suite: sittings of all problems, every provider at its best, and the document of it."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench import machine
from tilewright.bench.contender import Contender, first_line, prepare
from tilewright.bench.method.clock import Clock, HostClock
from tilewright.bench.method.roofs import Roofs, measure_roofs
from tilewright.bench.method.sitting import Side, Sitting, sit
from tilewright.bench.method.statistics import CONFIDENCE, Sittings, estimate, ratios
from tilewright.bench.method.turns import Effort
from tilewright.bench.providers.catalogue import OURS, Provider
from tilewright.bench.report import document as d
from tilewright.bench.suites.problem import Problem, Suite

Progress = Callable[["Run"], None]
KEPT_DIGITS = 5


@dataclass(frozen=True)
class Options:
    """``sittings`` times everything is set up anew; ``seconds`` for each problem over all of
    them."""

    sittings: int = 7
    seconds: float = 4.0
    quick: bool = False
    only: str = ""
    caches: str = "as found"

    @property
    def effort(self) -> Effort:
        """Of one sitting."""
        if self.quick:
            return Effort(0.0, 2, 2, 0.0)
        return Effort(self.seconds / self.sittings, 4, 12, 2e-3)


@dataclass
class Row:
    """What is known of a problem so far: contenders by provider, sittings by provider and state."""

    problem: Problem
    contenders: dict[str, Contender] = field(default_factory=dict)
    warm: dict[str, list[list[float]]] = field(default_factory=dict)
    cold: dict[str, list[list[float]]] = field(default_factory=dict)
    compute: list[list[float]] = field(default_factory=list)
    memory: list[list[float]] = field(default_factory=list)

    def keep(self, names: Sequence[str], found: Sitting) -> None:
        for at, name in enumerate(names):
            self.warm.setdefault(name, []).append(found.warm[at])
            if found.cold:
                self.cold.setdefault(name, []).append(found.cold[at])
        self.compute.append(found.compute)
        if found.memory:
            each = len(found.memory) // len(found.compute)
            groups = (found.memory[i : i + each] for i in range(0, len(found.memory), each))
            self.memory.append([statistics.median(group) for group in groups])


@dataclass
class Run:
    """A run under way: what a display may look at between two measurements."""

    suite: Suite
    options: Options
    rows: list[Row]
    launches: dict[str, Row]
    offers: dict[str, dict[str, Any]]
    clock: Clock
    began: float = field(default_factory=time.perf_counter)
    sitting: int = 0
    done: int = 0  # problems of this sitting
    doing: str = ""
    loads: list[float] = field(default_factory=list)

    def cut(self) -> None:
        """Forgets the sitting under way: the ones before were all."""
        whole, planned = self.sitting, self.options.sittings
        del self.loads[whole:]
        for row in (*self.rows, *self.launches.values()):
            for samples in (*row.warm.values(), *row.cold.values(), row.compute, row.memory):
                del samples[whole:]
        seconds = self.options.seconds * whole / planned
        self.options = replace(self.options, sittings=whole, seconds=seconds)

    @property
    def share(self) -> float:
        """Of the whole that is done."""
        each = max(1, len(self.rows) + len(self.launches))
        return (self.sitting * each + self.done) / (each * self.options.sittings)


def run(
    suite: Suite,
    providers: Sequence[Provider],
    options: Options,
    progress: Progress = lambda _: None,
) -> d.Document:
    """Measures a suite. Ctrl-C gives the document of the sittings that were whole, and is passed on
    where there is none. Raises BenchError if no problem has ``only`` in its name."""
    torch.set_num_threads(machine.THREADS)
    date = machine.now()
    here = machine.describe_machine()
    roofs = measure_roofs(machine.THREADS, options.quick)
    states, offers = _loaded(providers, suite.name)
    problems = _wanted(suite, options)
    sections = list(dict.fromkeys(problem.section for problem in problems))
    clock = HostClock((1 << 16) if options.quick else 2 * roofs.cache_bytes)
    under_way = Run(
        suite,
        options,
        [Row(problem) for problem in problems],
        {section: Row(suite.smallest(section)) for section in sections},
        offers,
        clock,
    )
    with torch.inference_mode():
        for under_way.sitting in range(options.sittings):
            try:
                _one_sitting(under_way, progress)
            except KeyboardInterrupt:
                if under_way.sitting == 0:
                    raise
                under_way.cut()
                break
    options = under_way.options
    under_way.doing, under_way.sitting, under_way.done = "the roofs once more", options.sittings, 0
    progress(under_way)
    with suppress(KeyboardInterrupt):
        roofs = _higher(roofs, measure_roofs(machine.THREADS, options.quick))
    return _document(under_way, states, here, roofs, date)


def _wanted(suite: Suite, options: Options) -> list[Problem]:
    problems = suite.problems(options.quick)
    found = [p for p in problems if options.only in p.name or options.only in p.section]
    if not found:
        names = "; ".join(problem.name for problem in problems)
        raise BenchError(
            f"no problem of {suite.name} has {options.only!r} in its name or section: {names}"
        )
    return found


def _loaded(
    providers: Sequence[Provider], suite: str
) -> tuple[list[d.ProviderState], dict[str, dict[str, Any]]]:
    """The state of every provider, and what those take part with that can be loaded."""
    states, offers = [], {}
    for provider in providers:
        status, reason = "measured", provider.absence()
        if reason:
            status = "absent"
        else:
            try:
                offered = provider.offers()
            except Exception as problem:  # a package of others, broken in its own way
                status, reason = "failed", first_line(problem)
            else:
                if suite not in offered:
                    continue
                offers[provider.name] = offered
        install = provider.install if status != "measured" else ""
        states.append(
            d.ProviderState(
                provider.name, provider.title, status, provider.versions(), reason, install
            )
        )
    return states, offers


def _one_sitting(run: Run, progress: Progress) -> None:
    run.done = 0
    run.loads.append(round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0)
    awake: dict[tuple[str, str], Callable[[], object]] = {}
    for section, row in run.launches.items():
        run.doing = f"{section}: calls on next to no data"
        progress(run)
        for name, call in _measure(run, row, {}, cold=False).items():
            awake[section, name] = call
        run.done += 1
    for row in run.rows:
        run.doing = row.problem.name
        progress(run)
        section = row.problem.section
        _measure(run, row, {name: call for (s, name), call in awake.items() if s == section})
        run.done += 1
        gc.collect()
    progress(run)


def _measure(
    run: Run, row: Row, awake: dict[str, Callable[[], object]], cold: bool = True
) -> dict[str, Callable[[], object]]:
    """One sitting of one problem; gives the calls that were measured, by provider."""
    inputs = row.problem.make()
    if not row.contenders:
        exact = row.problem.exact(inputs)
        for name, offered in run.offers.items():
            offer = offered[run.suite.name]
            row.contenders[name] = prepare(row.problem, inputs, exact, name, offer)
        calls = {name: c.call for name, c in row.contenders.items() if c.call is not None}
    else:
        calls = {}
        for name, contender in row.contenders.items():
            if contender.status == "ok":
                offer = run.offers[name][run.suite.name]
                again = contender.again(row.problem, inputs, offer)
                if again is not None:
                    calls[name] = again
    gone = [name for name in row.warm if name not in calls]
    for name in gone:  # failed in a later sitting: its rounds have no partners any more
        row.warm.pop(name)
        row.cold.pop(name, None)
    names = list(calls)
    if names:
        sides = [Side(calls[name], awake.get(name)) for name in names]
        seed = 1000 * run.sitting + run.done
        row.keep(names, sit(sides, run.clock, run.options.effort, seed, cold))
    for contender in row.contenders.values():
        contender.call = None  # weights and inputs go, so that the next sitting has others
    return calls


# ---- the document


def _document(
    run: Run, states: list[d.ProviderState], here: machine.Machine, roofs: Roofs, date: str
) -> d.Document:
    options = run.options
    return d.Document(
        format=d.FORMAT,
        version=d.VERSION,
        suite=run.suite.name,
        about=run.suite.about,
        date=date,
        seconds=round(time.perf_counter() - run.began, 1),
        machine=here,
        roofs=roofs,
        method=d.Method(
            options.sittings,
            float(options.seconds),
            CONFIDENCE,
            run.clock.evicted if isinstance(run.clock, HostClock) else 0,
            options.quick,
            options.caches,
        ),
        noise=_noise(run),
        providers=states,
        launches=[
            d.Launch(section, name, row.contenders[name].form, estimate(samples))
            for section, row in run.launches.items()
            for name, samples in row.warm.items()
        ],
        problems=[_problem(row, roofs) for row in run.rows],
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


def _higher(a: Roofs, b: Roofs) -> Roofs:
    """The better of two measurements: a busy machine only lowers them."""
    peaks = {kind: max(a.peaks[kind], b.peaks[kind]) for kind in a.peaks}
    return Roofs(max(a.memory, b.memory), max(a.cache, b.cache), a.cache_bytes, peaks)
