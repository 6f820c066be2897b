"""Improves a placement of any size by solving parts of it exactly, the rest held fixed.

A part is a few devices over all layers: how their experts are shared out between them is a problem
along the chain of layers, solved to its optimum. Where even two devices have too many experts for
that, a stretch of layers is shuffled between two devices and improved from there, and parts of few
layers go to the integer program at the end.
"""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np

from tilewright.runtime.placement import chain
from tilewright.runtime.placement.alternate import alternate, random_places
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.program import row_count, solve_program
from tilewright.runtime.placement.trace import Ints

_QUICK = 1_500_000  # pairs of states of a part: hundredths of a second for each step
PATIENCE = 60  # rounds without a gain after which a search ends
_POLISH_LAYERS = 3
_POLISH_ROWS = 6_000
_POLISH_SECONDS = 3.0


def search(
    problem: Problem, places: Ints, deadline: float, generator: np.random.Generator, goal: int = 0
) -> Ints:
    """``places`` improved until nothing helps, the deadline, or a cost of ``goal``."""
    best = alternate(problem, places)
    cost, idle = problem.cost(best), 0
    together = _devices_together(problem)
    while idle < PATIENCE and cost > goal and time.monotonic() < deadline:
        candidate = _resolve(problem, best, together, generator) if together else best
        if together < 2 or idle % 3 == 2:
            candidate = _shuffle(problem, candidate, generator)
        candidate = alternate(problem, candidate)
        reached = problem.cost(candidate)
        idle = 0 if reached < cost else idle + 1
        if reached <= cost:  # sideways steps lead out of plateaus
            best, cost = candidate, reached
    return best


def _devices_together(problem: Problem) -> int:
    """How many devices can have their experts shared out anew exactly and quickly; 0 for none."""
    fit = 0
    for count in range(2, problem.devices):
        if chain.state_count(problem.capacity[:count]) ** 2 <= _QUICK:
            fit = count
    return fit


def _resolve(problem: Problem, places: Ints, together: int, generator: np.random.Generator) -> Ints:
    devices = sorted(generator.choice(problem.devices, together, replace=False).tolist())
    part = problem.part(places, devices, range(problem.layers))
    return part.put_back(places, chain.best_chain(part.problem))


def _shuffle(problem: Problem, places: Ints, generator: np.random.Generator) -> Ints:
    """Two or three devices' experts shuffled in a stretch of layers, and improved on their own."""
    if problem.devices < 2:
        return places
    count = min(problem.devices, int(generator.integers(2, 4)))
    devices = sorted(generator.choice(problem.devices, count, replace=False).tolist())
    length = int(generator.integers(1, problem.layers + 1))
    start = int(generator.integers(0, problem.layers - length + 1))
    part = problem.part(places, devices, range(start, start + length))
    own = random_places(part.problem, generator)
    return part.put_back(places, alternate(part.problem, own))


def polish(problem: Problem, places: Ints, deadline: float, generator: np.random.Generator) -> Ints:
    """Pairs of devices over a few layers, one after the other, by the integer program."""
    stretches = range(max(1, problem.layers - _POLISH_LAYERS + 1))
    parts = [
        (pair, start) for pair in combinations(range(problem.devices), 2) for start in stretches
    ]
    generator.shuffle(parts)
    for pair, start in parts:
        left = deadline - time.monotonic()
        if left < 0.2:
            break
        layers = range(start, min(problem.layers, start + _POLISH_LAYERS))
        part = problem.part(places, pair, layers)
        if row_count(part.problem) > _POLISH_ROWS or chain.feasible(part.problem):
            continue  # too large, or the search solves such parts exactly
        own = part.places(places)
        seconds = min(left, _POLISH_SECONDS)
        found = solve_program(part.problem, seconds, part.problem.cost(own)).places
        if found is not None:
            places = alternate(problem, part.put_back(places, found))
    return places
