"""Many adapters on one base: which expert a router's choice means for a token of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.errors import ExpertError


@dataclass(frozen=True, eq=False)
class Rerouting:
    """ids'[b, k] = ids[b, k] if adapters[b] < 0 else map[adapters[b], ids[b, k]]
    (arXiv 2508.17624).

    ``adapters`` int32 [T], below 0 for the base, else known to be rows of ``map`` int32 [A, E].
    """

    adapters: torch.Tensor
    map: torch.Tensor

    def apply(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int [T, k] of the E base experts -> [T, k] of ids' dtype, in torch.

        Raises ExpertError for ids out of range (on CPUs; devices check).
        """
        self.check(ids)
        adapters = self.adapters.long()[:, None]
        moved = self.map[adapters.clamp(min=0), ids.long()].to(ids.dtype)
        return torch.where(adapters < 0, ids, moved)

    def check(self, ids: torch.Tensor) -> None:
        """Raises ExpertError for ids that are no base experts (on CPUs)."""
        if ids.device.type == "cpu":
            check_range("expert ids", ids, 0, self.map.shape[1] - 1)


def check_range(what: str, ids: torch.Tensor, least: int, most: int) -> None:
    """Raises ExpertError unless least <= ids <= most."""
    if not ids.numel():
        return
    low, high = (int(end) for end in torch.aminmax(ids))
    if low < least or high > most:
        raise ExpertError(f"{what} must be in {least} to {most}; they are in {low} to {high}")
