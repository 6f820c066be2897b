"""Memory in numbers: what exists, is mapped, and would be padded; the ratios of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.runtime.expert_memory.snapshot import Layer


def fragmentation(
    base: Sequence[int], slots: int, per_slot: int, adapters: Sequence[Sequence[int]]
) -> float:
    """F_mem = sum_l (M_l + N * E_max) / sum_l (M_l + sum_i e_i^(l)) (arXiv 2508.17624): experts of
    the padded tensors over experts that exist.

    ``base``: experts per layer; ``adapters``: for each, how many experts per layer it brings.
    """
    padded = sum(base) + len(base) * slots * per_slot
    return padded / (sum(base) + sum(sum(counts) for counts in adapters))


def sparsity(counts: Sequence[int]) -> float:
    """S_i = sum_l (E_i - e_i^(l)) / (L * E_i), E_i = max_l e_i^(l), for one adapter's counts."""
    most = max(counts)
    return sum(most - count for count in counts) / (len(counts) * most)


@dataclass(frozen=True)
class AdapterFigures:
    """One adapter: its slot, experts per layer, sparsity S_i, and the bytes of its experts."""

    slot: int
    experts: Mapping[Layer, int]
    sparsity: float
    nbytes: int


@dataclass(frozen=True)
class MemoryFigures:
    """All layers together. Bytes; ``f_mem`` for the slots that are taken, as in the paper."""

    slots: int
    experts_per_slot: int
    adapters: Mapping[str, AdapterFigures]
    mapped_bytes: int
    existing_bytes: int
    padded_bytes: int
    f_mem: float

    @property
    def overhead(self) -> float:
        """Mapped bytes over the bytes of the experts that exist: 1 is perfect."""
        return self.mapped_bytes / self.existing_bytes

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.adapters)

    def __str__(self) -> str:
        """A line for each adapter, then the bytes."""
        lines = [
            f"{name}: slot {a.slot}, {sum(a.experts.values())} experts in "
            f"{sum(map(bool, a.experts.values()))} layers (at most {max(a.experts.values())} of "
            f"{self.experts_per_slot}), sparsity {a.sparsity:.2f}, {_mebibytes(a.nbytes)}"
            for name, a in self.adapters.items()
        ]
        return "\n".join(
            [
                *lines,
                f"{len(self.adapters)} of {self.slots} slots taken; padding would take "
                f"{self.f_mem:.2f} times what exists (F_mem, of the slots taken)",
                f"mapped {_mebibytes(self.mapped_bytes)} for experts of "
                f"{_mebibytes(self.existing_bytes)} ({self.overhead:.3f}); all slots padded: "
                f"{_mebibytes(self.padded_bytes)}",
            ]
        )


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
