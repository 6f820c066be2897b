"""Improves one layer at a time: with its neighbours fixed, its best assignment is a transport.

Each of a layer's experts has a cost on each device, and each device has room for so many: an
assignment problem, solved exactly (SciPy's linear_sum_assignment). Sweeps over the layers go on
until none changes; costs only fall, so it ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.errors import BackendMissingError
from tilewright.runtime.placement.problem import Problem
from tilewright.runtime.placement.trace import Ints


def optimiser() -> Any:
    """``scipy.optimize``, loaded when used. Raises BackendMissingError."""
    try:
        import scipy.optimize
    except ImportError as error:
        raise BackendMissingError(
            "placing experts needs SciPy (its HiGHS solver): pip install 'tilewright[placement]'"
        ) from error
    return scipy.optimize


def random_places(problem: Problem, generator: np.random.Generator) -> Ints:
    """int64 [layers, experts]: every device filled exactly, otherwise at random."""
    slots = np.repeat(np.arange(problem.devices), problem.capacity)
    return np.stack([generator.permutation(slots) for _ in range(problem.layers)])


def alternate(problem: Problem, places: Ints) -> Ints:
    """``places`` improved until no single layer, nor any renaming from a layer on, is better."""
    places = places.copy()
    assign = optimiser().linear_sum_assignment
    slots = np.repeat(np.arange(problem.devices), problem.capacity)
    rename = problem.symmetric
    stale = set(range(problem.layers))  # layers whose neighbours changed since they were assigned
    while stale:
        for layer in range(problem.layers):
            if layer in stale:
                stale.discard(layer)
                if _assign_layer(problem, places, layer, slots, assign):
                    stale |= {layer - 1, layer + 1} & set(range(problem.layers))
        if rename and not stale:
            stale = {at for at in range(1, problem.layers) if _rename(problem, places, at, assign)}
    return places


def forward(problem: Problem, first: Ints) -> Ints:
    """Places from a first layer's, int64 [experts]: each layer the best for the one before."""
    assign = optimiser().linear_sum_assignment
    slots = np.repeat(np.arange(problem.devices), problem.capacity)
    places = [first]
    for layer in range(1, problem.layers):
        owed = problem.unary[layer] + problem.affinity[layer - 1].T @ problem.costs[places[-1]]
        places.append(slots[assign(owed[:, slots])[1]])
    return np.stack(places)


def _assign_layer(problem: Problem, places: Ints, layer: int, slots: Ints, assign: Any) -> bool:
    owed = problem.layer_costs(places, layer)
    new = slots[assign(owed[:, slots])[1]]
    every = np.arange(problem.experts)
    if owed[every, new].sum() >= owed[every, places[layer]].sum():
        return False
    places[layer] = new
    return True


def _rename(problem: Problem, places: Ints, layer: int, assign: Any) -> bool:
    """Exchanges the devices' names from ``layer`` on, if that makes the step before it cheaper."""
    here, there = places[layer - 1], places[layer]
    flows = np.zeros((problem.devices, problem.devices), dtype=np.int64)
    np.add.at(flows, (here[:, None], there[None, :]), problem.affinity[layer - 1])
    owed = flows.T @ problem.costs  # [old name, new name]
    names = assign(owed)[1]
    every = np.arange(problem.devices)
    if owed[every, names].sum() >= owed[every, every].sum():
        return False
    places[layer:] = names[places[layer:]]
    return True
