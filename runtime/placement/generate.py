"""Traces with a known affinity, to see whether it is found."""

from __future__ import annotations

import numpy as np

from tilewright.ir.errors import SettingError
from tilewright.runtime.placement.trace import Ints, Trace


def grouped_trace(
    tokens: int,
    layers: int,
    experts: int,
    groups: int,
    *,
    choices: int = 1,
    affinity: float = 0.8,
    seed: int = 0,
) -> tuple[Trace, Ints]:
    """A trace and the hidden group of each expert, int64 [layers, experts].

    Each layer's experts are dealt out to ``groups`` equal groups at random. A token stays in its
    group from one layer to the next with probability ``affinity`` and otherwise goes to any group;
    its experts are ``choices`` different ones of the group. With groups = GPUs, the hidden groups
    cost about (1 - affinity) of round robin. Raises SettingError.
    """
    if groups < 1 or experts % groups or choices > experts // groups:
        raise SettingError(
            f"{experts} experts in {groups} groups, {choices} to choose: the groups have to be "
            "equal and hold as many as are chosen"
        )
    if not 0 <= affinity <= 1:
        raise SettingError(f"an affinity is a probability, not {affinity}")
    generator = np.random.default_rng(seed)
    size = experts // groups
    hidden = np.empty((layers, experts), dtype=np.int64)
    ids = np.empty((tokens, layers, choices), dtype=np.int32)
    group = generator.integers(0, groups, tokens)
    for layer in range(layers):
        order = generator.permutation(experts).reshape(groups, size)
        hidden[layer][order.ravel()] = np.repeat(np.arange(groups), size)
        leaves = generator.random(tokens) >= affinity
        group = np.where(leaves, generator.integers(0, groups, tokens), group)
        ranks = generator.random((tokens, size)).argsort(axis=1)[:, :choices]
        ids[:, layer] = order[group[:, None], ranks]
    return Trace(ids, experts), hidden
