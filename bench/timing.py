"""Times two sides in one run, call by call in turns, so that both meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Side = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the least of ``rounds`` measurements."""

    median: float
    least: float
    rounds: int


@dataclass(frozen=True)
class Effort:
    """How long to measure: two rounds for warm-up, then rounds until ``seconds`` have passed."""

    seconds: float = 4.0
    fewest: int = 7
    most: int = 101
    shortest: float = 2e-3  # a measurement repeats calls until it takes about this long

    def __post_init__(self) -> None:
        assert 0 < self.fewest <= self.most, "at least one round"


QUICK = Effort(seconds=0.0, fewest=2, most=2, shortest=0.0)


def timed(call: Side, calls: int = 1) -> float:
    """Seconds that one of ``calls`` calls takes."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def summary(seconds: list[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), len(seconds))


def interleaved(ours: Side, theirs: Side, effort: Effort) -> tuple[Timing, Timing]:
    """Both sides in turns: the one that went first in a round goes last in the next.

    ours theirs | theirs ours | ours theirs | …   so neither always finds the other's data in cache.
    """
    sides = (ours, theirs)
    calls = [_calls(side, effort) for side in sides]
    seconds: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(seconds[0]) < effort.most:
        if len(seconds[0]) >= effort.fewest and time.perf_counter() - start > effort.seconds:
            break
        for at in (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0):
            seconds[at].append(timed(sides[at], calls[at]))
    return summary(seconds[0]), summary(seconds[1])


def in_rounds(sides: Sequence[Side], effort: Effort) -> list[tuple[float, ...]]:
    """Seconds of a call of each side, round by round; the short side is called as often as takes a
    tenth of the long one, lest something short be measured by a single call."""
    for side in sides:
        timed(side)  # compiles
    once = [timed(side) for side in sides]
    least = max(effort.shortest, max(once) / 10) if effort.shortest else 0.0
    calls = [max(1, round(least / max(seconds, 1e-7))) for seconds in once]
    rounds: list[tuple[float, ...]] = []
    start = time.perf_counter()
    while len(rounds) < effort.most:
        if len(rounds) >= effort.fewest and time.perf_counter() - start > effort.seconds:
            break
        order = list(range(len(sides)))[:: 1 if len(rounds) % 2 == 0 else -1]
        taken = {at: timed(sides[at], calls[at]) for at in order}
        rounds.append(tuple(taken[at] for at in range(len(sides))))
    return rounds


def _calls(side: Side, effort: Effort) -> int:
    """Calls of one measurement, after the warm-up."""
    timed(side)
    return max(1, round(effort.shortest / max(timed(side), 1e-7)))
