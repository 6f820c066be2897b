"""One sitting of a suite: every problem is made anew and measured, and told as it comes.

A run has several, each in a process of its own (``own_process``): what differs between two runs
(where memory lies, what the system gives as huge pages, how threads are placed) then differs
between its sittings, too, and its intervals know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench import machine
from tilewright.bench.contender import Contender, first_line, prepare
from tilewright.bench.devices import Device, Host
from tilewright.bench.method.clock import Call, Clock
from tilewright.bench.method.sitting import Side, Sitting, sit
from tilewright.bench.method.turns import Effort
from tilewright.bench.providers.catalogue import Offer, Provider
from tilewright.bench.report.document import ProviderState
from tilewright.bench.suites.problem import Problem, Suite

Contenders = dict[str, Contender]  # by provider


@dataclass(frozen=True)
class Options:
    """``sittings`` times everything is set up anew, each in a process of its own if
    ``processes``; ``seconds`` for each problem over all of them, on ``device``."""

    sittings: int = 7
    seconds: float = 4.0
    quick: bool = False
    only: str = ""
    caches: str = "as found"
    processes: bool = False
    device: Device = field(default_factory=Host)

    @property
    def effort(self) -> Effort:
        """Of one sitting."""
        if self.quick:
            return Effort(0.0, 2, 2, 0.0)
        return Effort(self.seconds / self.sittings, 4, 12, 2e-3)


@dataclass(frozen=True)
class Places:
    """What a sitting measures, in this order: a call on next to no data for every section, then
    the problems."""

    launches: dict[str, Problem]
    problems: list[Problem]

    @classmethod
    def of(cls, suite: Suite, options: Options) -> Places:
        """Raises BenchError if no problem has ``options.only`` in its name."""
        problems = suite.problems(options.quick)
        found = [p for p in problems if options.only in p.name or options.only in p.section]
        if not found:
            names = "; ".join(problem.name for problem in problems)
            raise BenchError(
                f"no problem of {suite.name} has {options.only!r} in its name or section: {names}"
            )
        sections = dict.fromkeys(problem.section for problem in found)
        return cls({section: suite.smallest(section) for section in sections}, found)


@dataclass(frozen=True)
class Task:
    """``number`` counts sittings from 0; ``known`` are the contenders of earlier sittings, place by
    place, each with the form that was the fastest: none in the first."""

    suite: Suite
    providers: Sequence[Provider]
    options: Options
    evicted: int  # bytes
    number: int = 0
    known: Sequence[Contenders] = ()


# ---- what a sitting tells


@dataclass(frozen=True)
class Loaded:
    """The providers that were asked for and how they are."""

    states: list[ProviderState]


@dataclass(frozen=True)
class Doing:
    """What comes now."""

    what: str


@dataclass(frozen=True)
class Measured:
    """One place is done. ``samples`` has the sides in the order of ``names``; None where nobody
    could be measured."""

    place: int
    contenders: Contenders
    names: list[str]
    samples: Sitting | None


Event = Loaded | Doing | Measured
Tell = Callable[[Event], None]


# ---- measuring


@dataclass
class _Sitting:
    task: Task
    tell: Tell
    offers: dict[str, Offer]
    clock: Clock
    place: int = 0
    awake: dict[tuple[str, str], Call] = field(default_factory=dict)  # by section and provider


def in_this_process(task: Task, tell: Tell) -> None:
    """Measures everything here and now."""
    tell(Doing("loading the providers"))
    torch.set_num_threads(machine.THREADS)
    states, offers = _loaded(task.providers, task.suite.name, task.options.device)
    tell(Loaded(states))
    places = Places.of(task.suite, task.options)
    device = task.options.device
    here = _Sitting(task, tell, offers, device.clock(task.evicted))
    with torch.inference_mode(), device.kernels():
        for section, problem in places.launches.items():
            tell(Doing(f"{section}: calls on next to no data"))
            calls = _measure(here, problem, {}, cold=False)
            here.awake.update({(section, name): call for name, call in calls.items()})
        for problem in places.problems:
            tell(Doing(problem.name))
            awake = {n: call for (s, n), call in here.awake.items() if s == problem.section}
            _measure(here, problem, awake)
            device.tidy()


def _loaded(
    providers: Sequence[Provider], suite: str, device: Device
) -> tuple[list[ProviderState], dict[str, Offer]]:
    """The state of every provider, and what those take part with that can be loaded."""
    states, offers = [], {}
    for provider in providers:
        status, reason = "measured", provider.absence(device)
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
                offers[provider.name] = offered[suite]
        install = provider.install if status == "failed" or provider.missing() else ""
        states.append(
            ProviderState(
                provider.name, provider.title, status, provider.versions(), reason, install
            )
        )
    return states, offers


def _measure(
    here: _Sitting, problem: Problem, awake: dict[str, Call], cold: bool = True
) -> dict[str, Call]:
    """One problem; gives the calls that were measured, by provider."""
    task, place, device = here.task, here.place, here.task.options.device
    inputs = problem.make()
    contenders = dict(task.known[place]) if task.known else {}
    calls: dict[str, Any]
    if contenders:
        usable = {name: c for name, c in contenders.items() if c.status == "ok"}
        for contender in (c for name, c in usable.items() if name not in here.offers):
            contender.status, contender.reason = "failed", "not to be loaded in a later sitting"
        calls = {
            name: contender.again(problem, inputs, here.offers[name], device)
            for name, contender in usable.items()
            if name in here.offers
        }
    else:
        exact = problem.exact(inputs)
        for name, offer in here.offers.items():
            contenders[name] = prepare(problem, inputs, exact, name, offer, device)
        calls = {name: contender.call for name, contender in contenders.items()}
    calls = {name: call for name, call in calls.items() if call is not None}
    samples = None
    if calls:
        sides = [Side(call, awake.get(name)) for name, call in calls.items()]
        seed = 1000 * task.number + place
        samples = sit(sides, here.clock, task.options.effort, seed, cold)
    for contender in contenders.values():
        contender.call = None  # weights and inputs go, so that the next sitting has others
    here.place += 1
    here.tell(Measured(place, contenders, list(calls), samples))
    return calls
