"""Medians of times and of ratios with intervals that hold what a second run would show.

Samples come in sittings (the problem set up anew, minutes apart), each of some rounds. What differs
between runs is mostly what differs between sittings: where memory lies, who else is on the machine.
So the bootstrap draws whole sittings (or, of a single one, blocks of neighbouring rounds: drift
stays in), and with so few of them its interval is stretched as Student's t asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np

Positive = Annotated[float, "above 0"]  # what reading a report holds it to
Sittings = Sequence[Sequence[float]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.99  # the ratio of a second run falls into such an interval 93 times of 100, not 83
RESAMPLES = 1000
FEWEST_SITTINGS = FEWEST_UNITS = 3  # of fewer, Student's tails would say that nothing is known


@dataclass(frozen=True)
class Estimate:
    """A median and its interval; ``count`` samples are behind it."""

    median: Positive
    low: Positive
    high: Positive
    count: int

    @property
    def spread(self) -> float:
        """Half of the interval's width, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high


def estimate(
    samples: Sittings, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Estimate:
    """The median of all samples (positive numbers) and its interval, the same in every call.

    Sittings are drawn whole, with replacement (Davison and Hinkley, Bootstrap Methods, 1997, 3.8:
    what lies within them then needs no drawing). The percentiles' distances from the median are
    stretched, in logarithms, by the factor of Hesterberg (What Teachers Should Know About the
    Bootstrap, 2015, section 4): n units drawn with replacement spread less than they should by
    sqrt((n - 1) / n), and have Student's tails. Fewer than ``FEWEST_SITTINGS`` sittings have blocks
    of rounds for units, and fewer than ``FEWEST_UNITS`` blocks the least and the largest sample: an
    interval that knows nothing of what differs between runs.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in samples if len(part)]
    assert parts, "nothing was measured"
    pooled = np.concatenate(parts)
    assert (pooled > 0).all(), "times and ratios are positive"
    median = float(np.median(pooled))
    apart = len(parts) >= FEWEST_SITTINGS
    units = len(parts) if apart else blocks_of(len(pooled))
    if units < FEWEST_UNITS:
        return Estimate(median, float(pooled.min()), float(pooled.max()), len(pooled))
    random = np.random.default_rng(0)
    if apart:
        drawn = _drawn_sittings(parts, resamples, random)
    else:
        drawn = _drawn_blocks(pooled, resamples, random)
    tail = (1 - confidence) / 2
    stretch = student(units - 1, 1 - tail) / NormalDist().inv_cdf(1 - tail)
    stretch *= math.sqrt(units / (units - 1))
    low, high = (math.log(part / median) for part in np.quantile(drawn, (tail, 1 - tail)))
    low, high = (median * math.exp(stretch * part) for part in (min(low, 0.0), max(high, 0.0)))
    return Estimate(median, low, high, len(pooled))


def ratios(ours: Sittings, theirs: Sittings) -> list[list[float]]:
    """theirs / ours, round by round: both sides of a quotient met the same moment."""
    return [
        [b / a for a, b in zip(mine, yours, strict=True)]
        for mine, yours in zip(ours, theirs, strict=True)
    ]


def block_length(rounds: int) -> int:
    """Neighbouring rounds that are drawn together: about the cube root, as is usual for means."""
    return max(1, round(math.cbrt(rounds)))


def blocks_of(rounds: int) -> int:
    return rounds // block_length(rounds)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; 1 of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 1.0


def student(freedom: int, probability: float) -> float:
    """The quantile of Student's t, by bisection of its closed-form distribution (Abramowitz and
    Stegun 26.7.3, 26.7.4), so that nothing but NumPy is needed to read a report."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _below(value: float, freedom: int) -> float:
    """The probability of at most ``value`` >= 0."""
    angle = math.atan(value / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 0.0
    for at in range(odd, freedom - 1, 2):
        total += term
        term *= cos2 * (at + 1) / (at + 2)
    if odd:
        inner = angle + math.sin(angle) * math.cos(angle) * total
        return 0.5 + inner / math.pi
    return 0.5 + math.sin(angle) * total / 2


def _drawn_sittings(parts: list[Floats], resamples: int, random: np.random.Generator) -> Floats:
    """Medians of pooled sittings, [resamples]: a sample weighs as often as its sitting was
    drawn."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pooled = np.concatenate(parts)
    order = np.argsort(pooled)
    drawn = random.integers(0, len(parts), (resamples, len(parts)))
    times = (drawn[:, :, None] == np.arange(len(parts))).sum(1)
    reached = np.cumsum(times[:, owner[order]], axis=1)
    half = reached[:, -1:] / 2
    lower, upper = (np.argmax(test, axis=1) for test in (reached >= half, reached > half))
    found: Floats = (pooled[order][lower] + pooled[order][upper]) / 2
    return found


def _drawn_blocks(part: Floats, resamples: int, random: np.random.Generator) -> Floats:
    """Medians of blocks of neighbouring rounds, the last and the first being neighbours, too."""
    length = block_length(len(part))
    starts = random.integers(0, len(part), (resamples, -(-len(part) // length), 1))
    at = (starts + np.arange(length)).reshape(resamples, -1)[:, : len(part)] % len(part)
    found: Floats = np.median(part[at], axis=1)
    return found
