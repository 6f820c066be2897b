"""Medians, intervals and ratios, on noise whose truth is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tilewright.bench.method.statistics import (
    FEWEST_SITTINGS,
    Estimate,
    blocks_of,
    estimate,
    geometric_mean,
    ratios,
    student,
)

times = st.floats(1e-7, 1e3)
sittings = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(times, min_size=n, max_size=n), min_size=1, max_size=8)
)


def drawn(
    source: np.random.Generator, between: float, sittings: int, rounds: int
) -> list[list[float]]:
    """Times around 1: level by sitting, jitter, and now and then somebody else on the machine."""
    found = []
    for _ in range(sittings):
        busy = np.where(source.random(rounds) < 0.1, source.exponential(0.2, rounds), 0)
        level, jitter = source.normal(0, between), source.normal(0, 0.02, rounds)
        found.append(list(np.exp(level + jitter + busy)))
    return found


@pytest.mark.parametrize(
    ("between", "count", "rounds"), [(0.0, 1, 40), (0.0, 7, 5), (0.03, 7, 5), (0.05, 3, 7)]
)
def test_the_interval_holds_what_the_median_tends_to(
    between: float, count: int, rounds: int
) -> None:
    """Of 99 %: at least 93 of 100 do, whatever differs between sittings; and a second run's median
    lies in the first's interval nearly as often as the docstring says."""
    source = np.random.default_rng(0)
    truth = float(np.median(drawn(source, between, 20000, rounds)))
    runs = [estimate(drawn(source, between, count, rounds), resamples=300) for _ in range(150)]
    assert sum(truth in run for run in runs) >= 0.93 * len(runs)
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    assert sum(b.median in a for a, b in pairs) >= 0.82 * len(pairs)
    assert sum(a.overlaps(b) for a, b in pairs) >= 0.95 * len(pairs)


def test_more_sittings_say_more() -> None:
    source = np.random.default_rng(1)
    spreads = [
        np.median([estimate(drawn(source, 0.03, n, 5)).spread for _ in range(20)])
        for n in (3, 7, 25)
    ]
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 0.03


@given(sittings, st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_another_unit_changes_nothing(samples: list[list[float]], factor: float) -> None:
    here = estimate(samples, resamples=50)
    there = estimate([[s * factor for s in part] for part in samples], resamples=50)
    expected = [factor * part for part in (here.median, here.low, here.high)]
    assert (there.median, there.low, there.high) == pytest.approx(tuple(expected), rel=1e-6)
    assert here.low <= here.median <= here.high


@given(st.integers(0, 10**6), st.permutations(range(3)))
@settings(max_examples=40, deadline=None)
def test_ratios_do_not_depend_on_who_is_named_first(seed: int, order: list[int]) -> None:
    """Chains of ratios close within each round, and the inverse has the inverse interval (medians
    of an odd number are samples)."""
    source = random.Random(seed)
    sides = [
        [[source.lognormvariate(0, 0.3) for _ in range(3)] for _ in range(5)] for _ in range(3)
    ]
    a, b, c = (sides[at] for at in order)
    for ab, bc, ac in zip(ratios(a, b), ratios(b, c), ratios(a, c), strict=True):
        assert [x * y for x, y in zip(ab, bc, strict=True)] == pytest.approx(ac)
    one, other = estimate(ratios(a, b)), estimate(ratios(b, a))
    assert other.median == pytest.approx(1 / one.median)
    assert (1 / other.high, 1 / other.low) == pytest.approx((one.low, one.high), rel=0.2)


def test_a_drift_that_both_sides_share_leaves_the_ratio() -> None:
    """The machine becomes slower and slower; the sides are 1.5 apart all the time."""
    ours = [[1.0 + (10 * sitting + at) / 10 for at in range(10)] for sitting in range(3)]
    theirs = [[1.5 * s for s in part] for part in ours]
    found = estimate(ratios(ours, theirs))
    assert (found.low, found.median, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert estimate(ours).spread > 0


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 9, 30])
@pytest.mark.parametrize("probability", [0.6, 0.975, 0.995])
def test_students_quantiles(freedom: int, probability: float) -> None:
    assert student(freedom, probability) == pytest.approx(
        stats.t.ppf(probability, freedom), rel=1e-6
    )


def test_few_samples_give_their_range() -> None:
    assert estimate([[2.0]]) == Estimate(2.0, 2.0, 2.0, 1)
    assert estimate([[1.0, 3.0], [2.0, 8.0]]) == Estimate(2.5, 1.0, 8.0, 4)
    assert blocks_of(2) < FEWEST_SITTINGS


@pytest.mark.parametrize("wrong", [lambda: estimate([[]]), lambda: estimate([[1.0, 0.0]])])
def test_what_is_no_time_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        wrong()


def test_geometric_means() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([]) == 1.0
