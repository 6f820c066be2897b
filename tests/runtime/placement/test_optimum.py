"""What is said to be the optimum is the one found by trying everything; bounds are bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.placement.problems import (
    balanced,
    draw_counts,
    optimum,
    parts,
    whole_problems,
)
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.runtime.placement import bounds, chain
from tilewright.runtime.placement.alternate import alternate, forward, random_places
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.program import solve_program
from tilewright.runtime.placement.recursive import program_halve, recursive
from tilewright.runtime.placement.search import polish
from tilewright.runtime.placement.solve import METHODS, place
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints


@settings(max_examples=15)
@given(whole_problems())
def test_every_method_against_trying_everything(given: tuple[Ints, Topology]) -> None:
    counts, topology = given
    problem = Problem.whole(counts, topology.costs())
    best = optimum(problem)
    for method in METHODS:
        solution = place(counts, topology, method=method, seconds=20)
        assert balanced(problem, solution.places)
        assert solution.bound <= best <= solution.cost == problem.cost(solution.places)
        if method in ("auto", "chain", "exact"):
            assert solution.proven and solution.gap == 0 and solution.cost == best, method


@settings(max_examples=25)
@given(whole_problems())
def test_the_bound_from_singular_values_is_one(given: tuple[Ints, Topology]) -> None:
    counts, topology = given
    best = optimum(Problem.whole(counts, topology.costs()))
    assert bounds.bound(counts, topology) <= best


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_from_fewer_devices_is_one_and_may_be_the_better(seed: int) -> None:
    counts = draw_counts(4, 8, seed)
    best = place(counts, Topology(4), method="chain").cost
    coarse = bounds.coarser(counts, 4, seconds=60)
    assert bounds.bound(counts, Topology(4)) < coarse <= best
    assert bounds.coarser(counts, 4, seconds=0) == bounds.coarser(counts, 2, seconds=60) == 0


def test_that_bound_is_reached_where_groups_are_clear() -> None:
    counts = np.zeros((1, 8, 8), dtype=np.int64)
    counts[0, :4, :4] = counts[0, 4:, 4:] = 10
    counts[0] += 1
    assert bounds.bound(counts, Topology(2)) == 32
    assert place(counts, Topology(2)).cost == 32


@given(parts())
def test_the_chain_and_the_program_with_fixed_neighbours(problem: Problem) -> None:
    best = optimum(problem)
    places = chain.best_chain(problem)
    assert balanced(problem, places) and problem.cost(places) == best
    if problem.devices == 2:  # costs of more devices are those of a topology there
        outcome = solve_program(problem, 20.0, best + 1)
        assert outcome.places is not None and problem.cost(outcome.places) == best
        assert outcome.bound == best
        assert solve_program(problem, 20.0, best).places is None


@given(parts(), st.integers(0, 1000))
def test_one_layer_at_a_time_only_improves(problem: Problem, seed: int) -> None:
    start = random_places(problem, np.random.default_rng(seed))
    better = alternate(problem, start)
    assert balanced(problem, better) and problem.cost(better) <= problem.cost(start)
    assert np.array_equal(alternate(problem, better), better)
    if problem.layers == 1:
        assert problem.cost(better) == optimum(problem)
    else:
        assert balanced(problem, forward(problem, start[0]))


@given(st.integers(0, 1000), st.integers(0, 2), st.integers(1, 3))
def test_a_part_costs_what_the_whole_changes(seed: int, start: int, length: int) -> None:
    generator = np.random.default_rng(seed)
    topology = Topology(4, 2)
    problem = Problem.whole(draw_counts(5, 8, seed), topology.costs())
    whole = random_places(problem, generator)
    devices = generator.choice(4, 2 + seed % 2, replace=False).tolist()
    part = problem.part(whole, devices, range(start, start + length))
    new = random_places(part.problem, generator)
    changed = part.put_back(whole, new)
    assert balanced(problem, changed)
    difference = problem.cost(changed) - problem.cost(whole)
    assert difference == part.problem.cost(new) - part.problem.cost(part.places(whole))
    assert np.array_equal(part.places(changed), new)


def test_halves_of_halves_and_polish_keep_the_balance() -> None:
    counts = draw_counts(4, 24, 3)
    for devices in (3, 4, 6):  # halves need not be equal
        problem = Problem.whole(counts, Topology(devices).costs())
        generator = np.random.default_rng(0)
        soon = time.monotonic() + 1
        places = recursive(problem, soon, program_halve(generator))
        assert balanced(problem, places)
        polished = polish(problem, places, time.monotonic() + 1, generator)
        assert balanced(problem, polished) and problem.cost(polished) <= problem.cost(places)


def test_a_program_that_runs_out_of_time_still_has_a_bound() -> None:
    counts = draw_counts(6, 16, 0, peaked=False)
    solution = place(counts, Topology(4), method="exact", seconds=1.5)
    assert 0 < solution.bound < solution.cost and 0 < solution.gap < 1
    assert not solution.proven


@pytest.mark.parametrize(
    ("experts", "gpus", "options", "error", "message"),
    [
        (6, 4, {}, SettingError, "--gpus may be 1, 2, 3, 6"),
        (8, 4, {"method": "magic"}, SettingError, "there are auto, chain, exact"),
        (8, 4, {"seconds": 0}, SettingError, "more than 0 seconds"),
        (32, 4, {"method": "chain"}, UnsupportedError, "too many for --method chain"),
        (256, 8, {"method": "exact", "seconds": 0.5}, UnsupportedError, "use --method recursive"),
    ],
)
def test_mistakes(
    experts: int, gpus: int, options: dict[str, object], error: type[Exception], message: str
) -> None:
    counts = draw_counts(2, experts, 0, peaked=False)
    with pytest.raises(error, match=message):
        place(counts, Topology(gpus), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "may be 1 to"), ((6, 4), "evenly over 4 nodes"), ((4, 2, 0), "costs 1 to 1000")],
)
def test_topologies_that_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Topology(*arguments)
