"""Recursive bipartition, after ExFlow: devices are halved, and each half halved again.

Each halving is a problem of two devices: an integer program of one variable per expert, far smaller
than the whole one. Halves that are small enough are solved along the chain of layers instead. What
is decided above is never taken back, so the result is good, not best.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tilewright.runtime.placement import chain
from tilewright.runtime.placement.alternate import alternate, random_places
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.program import row_count, solve_program
from tilewright.runtime.placement.trace import Ints

STARTS = 6
MOST_ROWS = 20_000  # of a halving that HiGHS is given
_QUICK = 1_000_000  # pairs of states of a halving that is solved exactly

Halve = Callable[[Problem, float], Ints]


def recursive(problem: Problem, deadline: float, halve: Halve) -> Ints:
    """Places int64 [layers, experts] of a whole problem. ``deadline``: in time.monotonic()."""
    places = np.zeros((problem.layers, problem.experts), dtype=np.int64)
    groups = [np.arange(problem.devices)]
    left = problem.devices - 1  # halvings to come, which share the time that is left
    while groups:
        group = groups.pop(0)
        if len(group) == 1:
            continue
        first, second = np.array_split(group, 2)
        inside = np.stack([np.flatnonzero(row == group[0]) for row in places])
        sizes = tuple(sum(problem.capacity[d] for d in half) for half in (first, second))
        steps = [
            counts[np.ix_(here, there)]
            for counts, here, there in zip(problem.affinity, inside[:-1], inside[1:], strict=True)
        ]
        size = inside.shape[1]
        small = Problem(
            np.stack(steps) if steps else np.zeros((0, size, size), dtype=np.int64),
            1 - np.eye(2, dtype=np.int64),
            np.zeros((problem.layers, size, 2), dtype=np.int64),
            sizes,
        )
        halves = halve(small, max(0.0, deadline - time.monotonic()) / left)
        np.put_along_axis(places, inside, np.where(halves == 0, first[0], second[0]), axis=1)
        groups += [first, second]
        left -= 1
    return places


def quick_halve(generator: np.random.Generator) -> Halve:
    """The exact optimum if that is quick, otherwise the best of a few descents."""

    def halve(problem: Problem, seconds: float) -> Ints:
        if chain.feasible(problem) and chain.work(problem) <= _QUICK:
            return chain.best_chain(problem)
        starts = (random_places(problem, generator) for _ in range(STARTS))
        return min((alternate(problem, start) for start in starts), key=problem.cost)

    return halve


def program_halve(generator: np.random.Generator) -> Halve:
    """The same, and the integer program looks for something better within its share of time."""
    quick = quick_halve(generator)

    def halve(problem: Problem, seconds: float) -> Ints:
        places = quick(problem, seconds)
        solved = chain.feasible(problem) and chain.work(problem) <= _QUICK
        if solved or row_count(problem) > MOST_ROWS or seconds < 0.1:
            return places
        found = solve_program(problem, seconds, problem.cost(places)).places
        return places if found is None else found

    return halve
