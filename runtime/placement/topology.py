"""What a hop between two devices costs: nothing, one, or more between nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.ir.errors import SettingError
from tilewright.runtime.placement.trace import Ints

MOST_DEVICES = 4096


@dataclass(frozen=True)
class Topology:
    """``gpus`` devices on ``nodes`` machines, numbered machine by machine.

    A hop costs 0 to the same device, 1 within a node and ``inter_cost`` between nodes (ExFlow's
    evaluation: 0, 1, 2). Whole numbers, so that costs add up exactly. Raises SettingError.
    """

    gpus: int
    nodes: int = 1
    inter_cost: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= MOST_DEVICES:
            raise SettingError(f"{self.gpus} GPUs; there may be 1 to {MOST_DEVICES}")
        if self.nodes < 1 or self.gpus % self.nodes:
            raise SettingError(
                f"{self.gpus} GPUs cannot be spread evenly over {self.nodes} nodes; "
                "the number of nodes has to divide that of the GPUs"
            )
        if not 1 <= self.inter_cost <= 1000:
            raise SettingError(f"a hop between nodes costs 1 to 1000, not {self.inter_cost}")

    @property
    def flat(self) -> bool:
        """Whether all hops to another device cost the same."""
        return self.nodes == 1 or self.inter_cost == 1

    @property
    def gpus_per_node(self) -> int:
        return self.gpus // self.nodes

    def costs(self) -> Ints:
        """int64 [gpus, gpus]: the cost of a hop from one device to another."""
        device = np.arange(self.gpus)
        node = device // self.gpus_per_node
        apart = (device[:, None] != device).astype(np.int64)
        far = node[:, None] != node
        return np.where(far, self.inter_cost, apart).astype(np.int64)

    def experts_per_gpu(self, experts: int) -> int:
        """E / N, exactly. Raises SettingError if it is no whole number."""
        if experts % self.gpus:
            near = [n for n in range(1, min(experts, 64) + 1) if experts % n == 0]
            raise SettingError(
                f"{experts} experts cannot be spread evenly over {self.gpus} GPUs; with "
                f"{experts} experts --gpus may be {', '.join(map(str, near))}"
            )
        return experts // self.gpus
