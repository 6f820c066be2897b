"""Puts the methods together: which one for which size, in what time, and how good the result is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.runtime.placement import bounds, chain
from tilewright.runtime.placement.alternate import alternate, forward, random_places
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.program import check_size, row_count, solve_program
from tilewright.runtime.placement.recursive import program_halve, quick_halve, recursive
from tilewright.runtime.placement.search import polish, search
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints

METHODS = {
    "auto": "the chain if it is small enough; otherwise search, then the integer program",
    "chain": "dynamic programming over the layers: the proven optimum of small problems",
    "exact": "the integer program (HiGHS), with a bound; optimal if the time suffices",
    "recursive": "halves of the devices and halves of those, each an integer program (ExFlow)",
    "search": "parts solved exactly, the rest fixed, from several starts",
}
STARTS = 4
_CLOSING_ROWS = 8_000  # a program that auto still tries to close the gap with


@dataclass(frozen=True)
class Solution:
    """``places`` int64 [layers, experts]: the device of each expert, and how good that is.

    ``cost`` and ``bound`` in hops, summed over all pairs of choices of all tokens; no placement
    costs less than ``bound``. ``method`` in words.
    """

    places: Ints
    cost: int
    bound: int
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """By how much of its cost it may be above the optimum: 0 is proven optimal."""
        return 0.0 if self.cost == 0 else (self.cost - self.bound) / self.cost

    @property
    def proven(self) -> bool:
        return self.cost == self.bound


class _Run:
    """One problem with its deadline, its random numbers and the best bound so far."""

    def __init__(self, affinity: Ints, topology: Topology, seconds: float, seed: int) -> None:
        self.problem = Problem.whole(affinity, topology.costs())
        self.topology = topology
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.generator = np.random.default_rng(seed)
        self.affinity = affinity
        self.bound = bounds.bound(affinity, topology)

    def solution(self, places: Ints, method: str) -> Solution:
        cost = self.problem.cost(places)
        assert cost >= self.bound, "a placement below its lower bound"
        took = time.monotonic() - self.start
        return Solution(places, cost, self.bound, method, took)

    def chain(self) -> Solution:
        states = chain.state_count(self.problem.capacity)
        if not chain.feasible(self.problem):
            raise UnsupportedError(
                f"{self.problem.experts} experts on {self.problem.devices} GPUs can be placed in "
                f"{float(states):.3g} ways in each layer, too many for --method chain; use auto"
            )
        places = chain.best_chain(self.problem)
        self.bound = self.problem.cost(places)
        return self.solution(places, f"chain of {states:,} assignments a layer")

    def search(self, share: float = 1.0) -> Solution:
        """From a recursive bipartition, from layers one after the other, and from random places."""
        problem, generator = self.problem, self.generator
        until = time.monotonic() + share * (self.deadline - time.monotonic())
        starts = [recursive(problem, until, quick_halve(generator))]
        for _ in range(STARTS):
            starts.append(forward(problem, random_places(problem, generator)[0]))
            starts.append(random_places(problem, generator))
        starts = sorted((alternate(problem, start) for start in starts), key=problem.cost)
        best = starts[0]
        for at, start in enumerate(starts[:STARTS]):
            left = until - time.monotonic()
            if left < 0 or problem.cost(best) == self.bound:
                break
            own = time.monotonic() + left / (STARTS - at)
            found = search(problem, start, own, generator, self.bound)
            best = min(best, found, key=problem.cost)
        return self.solution(best, "search")

    def exact(self) -> Solution:
        """The whole integer program, with a quick placement to beat."""
        check_size(self.problem)
        known = self.search(0.1)
        self._raise_bound()
        return self._close(known)

    def _raise_bound(self) -> None:
        if self.topology.flat:
            left = 0.5 * (self.deadline - time.monotonic())
            price = int(self.problem.costs.max())
            hops = bounds.coarser(self.affinity, self.topology.gpus, left)
            self.bound = max(self.bound, price * hops)

    def _close(self, known: Solution) -> Solution:
        if known.cost == self.bound:
            return self.solution(known.places, f"{known.method}; meets the bound")
        steps = tuple(bounds.bound(step[None], self.topology) for step in self.affinity)
        left = self.deadline - time.monotonic()
        outcome = solve_program(self.problem, left, known.cost, steps, self.topology.nodes)
        self.bound = max(self.bound, outcome.bound)
        places = known.places if outcome.places is None else outcome.places
        return self.solution(places, f"integer program of {row_count(self.problem):,} rows")

    def recursive(self) -> Solution:
        places = recursive(self.problem, self.deadline, program_halve(self.generator))
        return self.solution(alternate(self.problem, places), "recursive bipartition")

    def auto(self) -> Solution:
        left = self.deadline - time.monotonic()
        if chain.feasible(self.problem) and chain.estimate(self.problem) <= left:
            return self.chain()
        found = self.search(0.4)
        self._raise_bound()
        if found.cost == self.bound:
            return self.solution(found.places, "search; meets the bound")
        if row_count(self.problem) <= _CLOSING_ROWS:
            closed = self._close(found)
            return self.solution(closed.places, f"search, then {closed.method}")
        places = polish(self.problem, found.places, self.deadline, self.generator)
        return self.solution(places, "search, then integer programs of parts")


def place(
    affinity: Ints,
    topology: Topology,
    *,
    method: str = "auto",
    seconds: float = 60.0,
    seed: int = 0,
) -> Solution:
    """A balanced placement with few hops for counts int64 [layers - 1, experts, experts].

    ``seconds`` is a limit, not a target: less is used when nothing more helps. Raises SettingError
    (experts not divisible, method unknown), UnsupportedError (too large for a method that was
    asked for), BackendMissingError (no SciPy).
    """
    topology.experts_per_gpu(affinity.shape[1])
    if method not in METHODS:
        raise SettingError(f"no method {method!r}; there are {', '.join(METHODS)}")
    if not seconds > 0:
        raise SettingError(f"the time limit has to be more than 0 seconds, not {seconds:g}")
    run = _Run(affinity, topology, seconds, seed)
    methods: dict[str, Callable[[], Solution]] = {
        "auto": run.auto,
        "chain": run.chain,
        "exact": run.exact,
        "recursive": run.recursive,
        "search": run.search,
    }
    return methods[method]()
