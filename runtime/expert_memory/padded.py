"""Padding: the whole range allocated at once, existing expert or not. For comparison."""

from __future__ import annotations

import mmap

import torch

from tilewright.runtime.expert_memory.address_range import AddressRange
from tilewright.runtime.expert_memory.pace import FULL, Pace
from tilewright.runtime.expert_memory.page_table import Piece

_CHUNK = 1 << 20


class PaddedRange(AddressRange):
    """An ordinary tensor; mapping and unmapping do nothing."""

    on_demand = False

    def __init__(self, size: int, device: torch.device, page: int | None = None) -> None:
        self.page = page or mmap.PAGESIZE
        self.size = -(-size // self.page) * self.page
        self._bytes = torch.zeros(self.size, dtype=torch.uint8, device=device)

    def map(self, piece: Piece) -> None:
        """It is there."""

    def unmap(self, piece: Piece, pace: Pace = FULL) -> None:
        """It stays."""

    def write(self, offset: int, data: torch.Tensor, pace: Pace = FULL) -> None:
        target = self._bytes[offset : offset + len(data)]
        for at, stop in pace.steps(0, len(data), _CHUNK):
            target[at:stop].copy_(data[at:stop])

    def finish(self, start: int, stop: int, pace: Pace = FULL) -> None:
        self.settle()

    def settle(self) -> None:
        if self._bytes.is_cuda:
            torch.cuda.synchronize(self._bytes.device)

    def tensor(self, size: int) -> torch.Tensor:
        return self._bytes[:size]
