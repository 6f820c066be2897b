"""Two sides or more in turns, summed up by median and least: what the figures of one topic need.

The turns and the clock are ``bench.method``'s, as are those of the suites.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tilewright.bench.method.clock import timed
from tilewright.bench.method.turns import Effort, take_turns

__all__ = ["QUICK", "Effort", "Side", "Timing", "in_rounds", "interleaved", "summary", "timed"]
Side = Callable[[], object]
QUICK = Effort(seconds=0.0, fewest=2, most=2, shortest=0.0)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the least of ``rounds`` measurements."""

    median: float
    least: float
    rounds: int


def summary(seconds: list[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), len(seconds))


def interleaved(ours: Side, theirs: Side, effort: Effort) -> tuple[Timing, Timing]:
    """Both sides in turns: the one that went first in a round goes last in the next.

    ours theirs | theirs ours | ours theirs | …   so neither always finds the other's data in cache.
    """
    sides = (ours, theirs)
    rounds = _rounds(sides, [_calls(side, effort) for side in sides], effort)
    mine, yours = (summary(list(seconds)) for seconds in zip(*rounds, strict=True))
    return mine, yours


def in_rounds(sides: Sequence[Side], effort: Effort) -> list[tuple[float, ...]]:
    """Seconds of a call of each side, round by round; the short side is called as often as takes a
    tenth of the long one, lest something short be measured by a single call."""
    for side in sides:
        timed(side)  # compiles
    once = [timed(side) for side in sides]
    least = max(effort.shortest, max(once) / 10) if effort.shortest else 0.0
    return _rounds(sides, [max(1, round(least / max(seconds, 1e-7))) for seconds in once], effort)


def _rounds(sides: Sequence[Side], calls: Sequence[int], effort: Effort) -> list[tuple[float, ...]]:
    turns = [partial(timed, side, count) for side, count in zip(sides, calls, strict=True)]
    return take_turns(turns, effort)


def _calls(side: Side, effort: Effort) -> int:
    """Calls of one measurement, after the warm-up."""
    timed(side)
    return max(1, round(effort.shortest / max(timed(side), 1e-7)))
