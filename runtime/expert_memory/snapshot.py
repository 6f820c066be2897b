"""What is loaded at one moment, never changed afterwards: readers keep the one they began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tilewright.ir.errors import ExpertError

Layer = int | str


@dataclass(frozen=True)
class Adapter:
    """One adapter: its slot, and per layer the base experts it replaces, in the slot's order."""

    name: str
    slot: int
    experts: Mapping[Layer, tuple[int, ...]]


@dataclass(frozen=True)
class Snapshot:
    """The adapters by name, and each layer's expert map Pi, int32 [slots, E] on its device."""

    maps: Mapping[Layer, torch.Tensor]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    def adapter(self, name: str) -> Adapter:
        """The adapter of a name. Raises ExpertError if it is not loaded."""
        if name not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise ExpertError(f"adapter {name!r} is not loaded; loaded are: {loaded}")
        return self.adapters[name]

    def name_of(self, slot: int) -> str | None:
        """The adapter in a slot, or None."""
        return next((a.name for a in self.adapters.values() if a.slot == slot), None)


def expert_map(slots: int, experts: int) -> torch.Tensor:
    """Pi of a layer without adapters, int32 [slots, experts]: every expert stays as it is."""
    return torch.arange(experts, dtype=torch.int32).repeat(slots, 1)


def with_adapter(
    found: torch.Tensor, slot: int, experts: tuple[int, ...], per_slot: int
) -> torch.Tensor:
    """A copy of Pi with another row for ``slot``, whose adapter brings ``experts`` in this order.

    Pi[i, j] = j where adapter i leaves expert j as it is (or slot i is empty), else
    E + i * E_max + the expert's place in the slot (PAPERS.md §3.2, arXiv 2508.17624).
    """
    row = list(range(found.shape[1]))
    for place, expert in enumerate(experts):
        row[expert] = found.shape[1] + slot * per_slot + place
    copy = found.clone()
    copy[slot] = torch.tensor(row, dtype=found.dtype)
    return copy
