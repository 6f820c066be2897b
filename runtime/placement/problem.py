"""The problem of placing experts, whole or with most of it fixed, and what a solution costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.runtime.placement.trace import Ints


@dataclass(frozen=True)
class Problem:
    """Places ``places[l, i]``, a device for each expert of each layer, that cost least:

        Σ_l Σ_ij affinity[l, i, j] · costs[places[l, i], places[l+1, j]]
      + Σ_l Σ_i  unary[l, i, places[l, i]]

    with exactly ``capacity[d]`` experts of every layer on device d. ``affinity`` int64 [layers - 1,
    experts, experts], ``costs`` int64 [devices, devices] and symmetric, ``unary`` int64 [layers,
    experts, devices]: what is owed to neighbours that are held fixed, 0 in a whole problem.
    """

    affinity: Ints
    costs: Ints
    unary: Ints
    capacity: tuple[int, ...]

    @classmethod
    def whole(cls, affinity: Ints, costs: Ints) -> Problem:
        """All experts and devices, equally many experts on each: E has to be divisible by N."""
        layers, experts, devices = len(affinity) + 1, affinity.shape[1], len(costs)
        unary = np.zeros((layers, experts, devices), dtype=np.int64)
        return cls(affinity, costs, unary, (experts // devices,) * devices)

    @property
    def layers(self) -> int:
        return int(self.unary.shape[0])

    @property
    def experts(self) -> int:
        return int(self.unary.shape[1])

    @property
    def devices(self) -> int:
        return len(self.capacity)

    @property
    def symmetric(self) -> bool:
        """Whether exchanging two devices changes no cost: then their names mean nothing."""
        size = self.devices
        apart = self.costs[~np.eye(size, dtype=bool)]
        inside = np.diagonal(self.costs)
        return bool(
            len(set(self.capacity)) == 1
            and (size < 2 or (apart == apart[0]).all())
            and (inside == inside[0]).all()
            and (self.unary == self.unary[:, :, :1]).all()
        )

    def cost(self, places: Ints) -> int:
        """What ``places`` int64 [layers, experts] costs."""
        own = np.take_along_axis(self.unary, places[:, :, None], axis=2).sum()
        between = sum(
            (counts * self.costs[here[:, None], there]).sum()
            for counts, here, there in zip(self.affinity, places[:-1], places[1:], strict=True)
        )
        return int(own + between)

    def layer_costs(self, places: Ints, layer: int) -> Ints:
        """int64 [experts, devices]: what each place of one layer costs, all other layers fixed."""
        owed: Ints = self.unary[layer].copy()
        if layer > 0:
            owed += self.affinity[layer - 1].T @ self.costs[places[layer - 1]]
        if layer + 1 < self.layers:
            owed += self.affinity[layer] @ self.costs[places[layer + 1]]
        return owed

    def part(self, places: Ints, devices: Sequence[int], layers: range) -> Part:
        """The problem of the experts that are now on ``devices`` in ``layers``, the rest fixed."""
        inside = np.isin(places, devices)
        inside[: layers.start] = inside[layers.stop :] = False
        members = np.stack([np.flatnonzero(inside[layer]) for layer in layers])
        anchored = self.costs[places] * ~inside[:, :, None]  # a free neighbour owes nothing yet
        unary = self.unary[list(layers)].copy()
        for at, layer in enumerate(layers):
            if layer > 0:
                unary[at] += self.affinity[layer - 1].T @ anchored[layer - 1]
            if layer + 1 < self.layers:
                unary[at] += self.affinity[layer] @ anchored[layer + 1]
        own = np.stack([unary[at][rows] for at, rows in enumerate(members)])[:, :, list(devices)]
        steps = [
            self.affinity[layer][np.ix_(members[at], members[at + 1])]
            for at, layer in enumerate(layers[:-1])
        ]
        size = members.shape[1]
        affinity = np.stack(steps) if steps else np.zeros((0, size, size), dtype=np.int64)
        small = Problem(
            affinity,
            self.costs[np.ix_(devices, devices)],
            own,
            tuple(self.capacity[device] for device in devices),
        )
        return Part(small, members, tuple(devices), layers)


@dataclass(frozen=True)
class Part:
    """A small problem within a larger one: ``members[l]`` are its experts by their old numbers."""

    problem: Problem
    members: Ints
    devices: tuple[int, ...]
    layers: range

    def places(self, whole: Ints) -> Ints:
        """The part's own solution in ``whole``, in the part's numbers."""
        names = {device: at for at, device in enumerate(self.devices)}
        return np.array(
            [
                [names[int(device)] for device in whole[layer][rows]]
                for layer, rows in zip(self.layers, self.members, strict=True)
            ],
            dtype=np.int64,
        )

    def put_back(self, whole: Ints, places: Ints) -> Ints:
        """``whole`` with the part's new solution in it; a copy."""
        result = whole.copy()
        names = np.asarray(self.devices, dtype=np.int64)
        for layer, rows, new in zip(self.layers, self.members, places, strict=True):
            result[layer][rows] = names[new]
        return result
