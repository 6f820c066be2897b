"""Small problems to the proven optimum, by dynamic programming along the chain of layers.

Costs join consecutive layers only, so the best placement of layers 0..l that ends in a given
assignment of layer l is all that later layers need to know. The states are the balanced assignments
of one layer: C(16, 8) = 12,870 for 16 experts on 2 devices, 2,520 for 8 on 4. Where devices are
alike, a state and its renamings are worth the same, so values are kept for one of each.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.trace import Ints

MOST_STATES = 40_320
MOST_WORK = 90_000_000  # pairs of states of two layers: a second or two for each step
_BLOCK = 128  # states of the next layer looked at together


def state_count(capacity: tuple[int, ...]) -> int:
    """How many assignments of sum(capacity) experts fill every device exactly."""
    count, left = 1, sum(capacity)
    for size in capacity:
        count *= math.comb(left, size)
        left -= size
    return count


def work(problem: Problem) -> int:
    """Pairs of states that one step between layers has to look at."""
    states = state_count(problem.capacity)
    alike = math.factorial(problem.devices) if problem.symmetric else 1
    return states * (states // alike)


def feasible(problem: Problem) -> bool:
    """Whether the problem is small enough for ``best_chain``."""
    return state_count(problem.capacity) <= MOST_STATES and work(problem) <= MOST_WORK


def estimate(problem: Problem) -> float:
    """About how many seconds ``best_chain`` takes on one slow core."""
    size = problem.experts * problem.devices  # of the products that compare two states
    return (problem.layers - 1) * work(problem) * size / 1.5e9


def best_chain(problem: Problem) -> Ints:
    """The optimal places int64 [layers, experts]. The problem has to be ``feasible``."""
    states = _states(problem.capacity)
    # Renamed so that devices appear in the order of their experts: the one state that is kept of
    # all its renamings, and where it stands among the kept.
    kept, kept_of = _kept(states, problem.devices) if problem.symmetric else _all(states)
    columns = np.arange(problem.experts)
    ends = states[kept]
    value = problem.unary[0][columns, ends].sum(axis=1)
    chosen = []
    for layer in range(1, problem.layers):
        value, before = _step(problem, layer, states, ends, value[kept_of])
        chosen.append(before)
    return _walk_back(states, kept, kept_of, int(value.argmin()), chosen)


def _step(
    problem: Problem, layer: int, states: NDArray[np.int8], ends: NDArray[np.int8], before: Ints
) -> tuple[Ints, Ints]:
    """For each state of ``ends``: the least cost of getting there, and from which of ``states``.

    Sums of whole numbers in floats are exact below 2²⁴ or 2⁵³, and none exceeds all costs.
    """
    counts, costs = problem.affinity[layer - 1], problem.costs
    largest = int(before.max()) + int(counts.sum()) * int(costs.max())
    exact = np.float32 if largest < 1 << 24 else np.float64
    names = np.arange(problem.devices)
    onehot = (states[:, :, None] == names).reshape(len(states), -1).astype(exact).T.copy()
    before = before.astype(exact)
    values = np.empty(len(ends), dtype=np.int64)
    origins = np.empty(len(ends), dtype=np.int64)
    columns = np.arange(problem.experts)
    for start in range(0, len(ends), _BLOCK):
        some = ends[start : start + _BLOCK]
        # owed[t, i, d]: what expert i of the layer before costs on device d, with this layer as t
        owed = counts.astype(exact) @ costs[some].astype(exact)
        total = owed.reshape(len(some), -1) @ onehot
        total += before
        origin = total.argmin(axis=1)
        own = problem.unary[layer][columns, some].sum(axis=1)
        values[start : start + len(some)] = total[np.arange(len(some)), origin].astype(int) + own
        origins[start : start + len(some)] = origin
    return values, origins


def _walk_back(
    states: NDArray[np.int8], kept: Ints, kept_of: Ints, last: int, chosen: list[Ints]
) -> Ints:
    """The states from the last layer to the first, under one naming of the devices."""
    places = [states[kept[last]].astype(np.int64)]
    end = last
    naming = np.arange(int(states.max()) + 1)  # from the kept state's names to the result's
    for origins in reversed(chosen):
        state = states[origins[end]].astype(np.int64)
        places.append(naming[state])
        end = int(kept_of[origins[end]])
        renamed = naming.copy()
        renamed[states[kept[end]]] = naming[state]
        naming = renamed
    return np.stack(places[::-1])


@lru_cache(maxsize=8)
def _states(capacity: tuple[int, ...]) -> NDArray[np.int8]:
    """int8 [states, experts]: every assignment that fills the devices exactly."""
    experts = sum(capacity)
    rows: list[list[int]] = [[-1] * experts]
    for device, size in enumerate(capacity):
        grown = []
        for row in rows:
            free = [at for at, place in enumerate(row) if place < 0]
            for taken in combinations(free, size):
                new = row.copy()
                for at in taken:
                    new[at] = device
                grown.append(new)
        rows = grown
    return np.array(rows, dtype=np.int8)


def _kept(states: NDArray[np.int8], devices: int) -> tuple[Ints, Ints]:
    """Rows whose devices first appear in order, and for every row its renaming among them."""
    first = np.stack([(states == device).argmax(axis=1) for device in range(devices)], axis=1)
    rank = first.argsort(axis=1).argsort(axis=1)  # of a device, by where it first appears
    renamed = np.take_along_axis(rank, states.astype(np.int64), axis=1)
    # Rows as numbers to the base of the devices: 40,320 states at most, so at most 20 experts.
    weights = float(devices) ** np.arange(states.shape[1])
    codes, wanted = states @ weights, renamed @ weights
    kept = np.flatnonzero((rank == np.arange(devices)).all(axis=1))
    kept = kept[codes[kept].argsort()]
    return kept, np.searchsorted(codes[kept], wanted)


def _all(states: NDArray[np.int8]) -> tuple[Ints, Ints]:
    every = np.arange(len(states))
    return every, every
