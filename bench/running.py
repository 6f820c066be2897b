"""Runs a suite: sittings of all problems, every provider at its best, and what they bring."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from tilewright import BenchError
from tilewright.bench import machine
from tilewright.bench.contender import Contender
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.method.sitting import Sitting
from tilewright.bench.one_sitting import (
    Doing,
    Event,
    Loaded,
    Measured,
    Options,
    Places,
    Task,
    in_this_process,
)
from tilewright.bench.own_process import in_own_process
from tilewright.bench.providers.catalogue import Provider
from tilewright.bench.report.document import ProviderState
from tilewright.bench.suites.problem import Problem, Suite

Progress = Callable[["Run"], None]
QUICK_EVICTED = 1 << 16  # bytes
INTERRUPTED = "interrupted"


@dataclass
class Row:
    """What is known of a problem so far: contenders by provider, sittings by provider and state."""

    problem: Problem
    contenders: dict[str, Contender] = field(default_factory=dict)
    warm: dict[str, list[list[float]]] = field(default_factory=dict)
    cold: dict[str, list[list[float]]] = field(default_factory=dict)
    compute: list[list[float]] = field(default_factory=list)
    memory: list[list[float]] = field(default_factory=list)

    def keep(self, event: Measured) -> None:
        """One sitting more. A provider that failed in it loses its rounds of earlier ones: they
        have no partners any more."""
        self.contenders = event.contenders
        for samples in (self.warm, self.cold):
            for name in set(samples) - set(event.names):
                del samples[name]
        if event.samples is not None:
            self._add(event.names, event.samples)

    def _add(self, names: Sequence[str], found: Sitting) -> None:
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
    evicted: int  # bytes
    states: list[ProviderState] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    sitting: int = 0
    done: int = 0  # problems of this sitting
    doing: str = ""
    loads: list[float] = field(default_factory=list)

    @property
    def all_rows(self) -> list[Row]:
        """In the order in which a sitting measures them."""
        return [*self.launches.values(), *self.rows]

    def take(self, event: Event) -> None:
        """What a sitting tells."""
        if isinstance(event, Loaded):
            self.states = self.states or event.states
        elif isinstance(event, Doing):
            self.doing = event.what
        else:
            self.all_rows[event.place].keep(event)
            self.done = event.place + 1

    def cut(self) -> None:
        """Forgets the sitting under way: the ones before were all."""
        whole, planned = self.sitting, self.options.sittings
        del self.loads[whole:]
        for row in self.all_rows:
            for samples in (*row.warm.values(), *row.cold.values(), row.compute, row.memory):
                del samples[whole:]
        seconds = self.options.seconds * whole / planned
        self.options = replace(self.options, sittings=whole, seconds=seconds)

    @property
    def share(self) -> float:
        """Of the whole that is done."""
        each = max(1, len(self.rows) + len(self.launches))
        return (self.sitting * each + self.done) / (each * self.options.sittings)


@dataclass(frozen=True)
class Finished:
    """A run that is over: roofs, date and seconds of it; ``cut_short`` says why it has fewer
    sittings than were asked for."""

    run: Run
    roofs: Roofs
    here: machine.Machine
    date: str
    seconds: float
    cut_short: str = ""

    @property
    def interrupted(self) -> bool:
        return self.cut_short.startswith(INTERRUPTED)


def run(
    suite: Suite,
    providers: Sequence[Provider],
    options: Options,
    progress: Progress = lambda _: None,
) -> Finished:
    """Measures a suite. Ctrl-C, or a sitting whose process dies, cuts it short after the
    sittings that were whole, and is passed on where there is none. Raises BenchError if no
    problem has ``only`` in its name."""
    torch.set_num_threads(machine.THREADS)
    device = options.device
    date, here = machine.now(), device.describe()
    places = Places.of(suite, options)
    roofs = device.roofs(options.quick)
    under_way = Run(
        suite,
        options,
        [Row(problem) for problem in places.problems],
        {section: Row(problem) for section, problem in places.launches.items()},
        QUICK_EVICTED if options.quick else device.evicted(roofs),
    )
    cut_short = _sittings(under_way, providers, progress)
    under_way.doing, under_way.done = "the roofs once more", 0
    under_way.sitting = under_way.options.sittings
    progress(under_way)
    with suppress(KeyboardInterrupt):
        roofs = _higher(roofs, device.roofs(options.quick))
    seconds = round(time.perf_counter() - under_way.began, 1)
    return Finished(under_way, roofs, here, date, seconds, cut_short)


def _sittings(run: Run, providers: Sequence[Provider], progress: Progress) -> str:
    """All of them; why there are fewer, or nothing."""

    def tell(event: Event) -> None:
        run.take(event)
        progress(run)

    seat = in_own_process if run.options.processes else in_this_process
    for number in range(run.options.sittings):
        run.sitting, run.done = number, 0
        run.loads.append(round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0)
        known = [row.contenders for row in run.all_rows] if number else ()
        task = Task(run.suite, providers, run.options, run.evicted, number, known)
        try:
            seat(task, tell)
        except (KeyboardInterrupt, BenchError) as problem:
            if number == 0:
                raise
            planned = run.options.sittings
            run.cut()
            why = INTERRUPTED if isinstance(problem, KeyboardInterrupt) else str(problem)
            return f"{why}: {run.options.sittings} of {planned} sittings were whole"
    return ""


def _higher(a: Roofs, b: Roofs) -> Roofs:
    """The better of two measurements: a busy machine only lowers them."""
    peaks = {kind: max(a.peaks[kind], b.peaks[kind]) for kind in a.peaks}
    return Roofs(max(a.memory, b.memory), max(a.cache, b.cache), a.cache_bytes, peaks)
