"""Small placement problems for Hypothesis, and their optimum by trying everything."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st

from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.topology import Topology
from tilewright.runtime.placement.trace import Ints

# experts, devices, nodes, layers: at most 90³ combinations of assignments.
SHAPES = [
    (2, 1, 1, 3),
    (2, 2, 1, 3),
    (4, 2, 1, 4),
    (6, 2, 1, 3),
    (4, 4, 1, 3),
    (4, 4, 2, 3),
    (6, 3, 1, 2),
    (4, 2, 2, 3),
    (4, 2, 1, 1),
]


def draw_counts(layers: int, experts: int, seed: int, *, peaked: bool = True) -> Ints:
    """int64 [layers - 1, experts, experts]; mostly small, some large, some 0."""
    generator = np.random.default_rng(seed)
    shape = (layers - 1, experts, experts)
    counts = generator.integers(0, 6, shape)
    return counts * generator.choice([0, 1, 10], shape) if peaked else counts


@st.composite
def whole_problems(draw: st.DrawFn) -> tuple[Ints, Topology]:
    experts, devices, nodes, layers = draw(st.sampled_from(SHAPES))
    counts = draw_counts(layers, experts, draw(st.integers(0, 1 << 30)))
    return counts, Topology(devices, nodes, draw(st.sampled_from([1, 2, 5])))


@st.composite
def parts(draw: st.DrawFn) -> Problem:
    """Problems with fixed neighbours, devices of different sizes, any symmetric costs."""
    capacity = draw(st.sampled_from([(1, 2), (2, 2), (1, 1, 2), (1, 1, 1), (3, 1)]))
    layers, experts, devices = draw(st.integers(1, 3)), sum(capacity), len(capacity)
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    costs = generator.integers(1, 4, (devices, devices))
    costs = np.triu(costs, 1) + np.triu(costs, 1).T
    unary = generator.integers(0, 30, (layers, experts, devices))
    counts = draw_counts(layers, experts, int(generator.integers(1 << 30)))
    return Problem(counts, costs, unary, capacity)


def layer_states(capacity: tuple[int, ...]) -> Ints:
    slots = np.repeat(np.arange(len(capacity)), capacity)
    return np.array(sorted(set(permutations(slots.tolist()))))


def optimum(problem: Problem) -> int:
    """The least cost of all balanced places."""
    states = layer_states(problem.capacity)
    return min(problem.cost(np.stack(rows)) for rows in product(states, repeat=problem.layers))


def balanced(problem: Problem, places: Ints) -> bool:
    counts = [np.bincount(row, minlength=problem.devices).tolist() for row in places]
    return all(row == list(problem.capacity) for row in counts)
