"""How few hops any placement can have: a bound from singular values, without solving anything.

For one step with counts A [E, E], let X and Y [E, N] say which device each expert of the two layers
is on (0 or 1), C = E/N of them on each. What stays on its device is trace(Xᵀ A Y). Balance makes
X = J/N + X' with X'ᵀ1 = 0, X'1 = 0 and X'ᵀX' = C (I - J/N): N - 1 directions, each of length √C,
all orthogonal to the vector of ones. The mixed terms vanish, so with P = I - J/E

    trace(Xᵀ A Y)  <=  sum(A)/N + C · (the N - 1 largest singular values of P A P, added up)

which is the projected eigenvalue bound of graph partitioning (Rendl and Wolkowicz, 1995) for two
layers. The steps' bounds add up, since each holds for every placement.
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.runtime.placement import chain
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints

_ROUNDING = 1e-9  # of the step's counts: what float64 may be off by


def step_bound(counts: Ints, groups: int) -> int:
    """At least so many of ``counts`` int64 [E, E] cross between ``groups`` equal groups."""
    total = int(counts.sum())
    if groups == 1 or total == 0:
        return 0
    centred = counts - counts.mean(axis=0) - counts.mean(axis=1)[:, None] + counts.mean()
    values = np.linalg.svd(centred, compute_uv=False)[: groups - 1]
    stays = total / groups + len(counts) / groups * float(values.sum())
    return max(0, math.ceil(total - stays - _ROUNDING * total))


def bound(affinity: Ints, topology: Topology) -> int:
    """A lower bound of the cost of every balanced placement, for counts [layers - 1, E, E].

    Each hop costs 1 and, if it crosses nodes, inter_cost - 1 more: two bounds added.
    """
    near = sum(step_bound(counts, topology.gpus) for counts in affinity)
    if topology.flat:
        return near
    far = sum(step_bound(counts, topology.nodes) for counts in affinity)
    return near + (topology.inter_cost - 1) * far


def coarser(affinity: Ints, gpus: int, seconds: float) -> int:
    """A bound of the hops between ``gpus`` devices that are alike, from the optimum of fewer.

    Merge N devices into g equal groups, at random: two of them come to lie in different ones with
    probability N (g - 1) / (g (N - 1)), so some way of merging has at most that share of the hops,
    and at least the optimum of g devices. 0 if no such optimum is found in about so many seconds.
    """
    best = 0
    for groups in range(2, gpus):
        problem = Problem.whole(affinity, Topology(groups).costs())
        fits = gpus % groups == 0 and chain.feasible(problem)
        if fits and chain.estimate(problem) <= seconds:
            seconds -= chain.estimate(problem)
            hops = problem.cost(chain.best_chain(problem)) * groups * (gpus - 1)
            best = max(best, -(-hops // (gpus * (groups - 1))))
    return best
