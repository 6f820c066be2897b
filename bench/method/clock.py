"""Clocks: seconds of a call with its data in the caches or not, and kernels that never change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

Call = Callable[[], object]
REFERENCE_SIZE = 384  # of a product that the second-level caches hold; about a millisecond


def timed(call: Call, calls: int = 1) -> float:
    """Seconds that one of ``calls`` calls takes."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


class Clock(Protocol):
    """What a device must offer to be measured."""

    @property
    def most_calls(self) -> int:
        """That are worth measuring at once."""

    def seconds(self, call: Call, calls: int = 1) -> float:
        """Of one of ``calls`` calls, until their results are there."""

    def launch(self, call: Call, calls: int = 1) -> float:
        """What calling costs whoever calls, the call having next to nothing to do."""

    def evict(self) -> float:
        """Drives everything out of the caches; the seconds that it took."""

    def compute(self) -> float:
        """Seconds of a fixed kernel that is bound by arithmetic."""


@dataclass
class HostClock:
    """The CPU: calls return with their results, caches are emptied by reading something larger."""

    evicted: int  # bytes
    most_calls: int = 2000
    _memory: torch.Tensor = field(init=False)
    _product: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._memory = torch.ones(max(1, self.evicted // 8), dtype=torch.int64)
        size = REFERENCE_SIZE
        self._product = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)

    def seconds(self, call: Call, calls: int = 1) -> float:
        return timed(call, calls)

    def launch(self, call: Call, calls: int = 1) -> float:
        return timed(call, calls)

    def evict(self) -> float:
        """Read by all threads, so that each core's own caches are emptied, too."""
        return timed(self._memory.sum)

    def compute(self) -> float:
        a, b, out = self._product
        torch.mm(a, b, out=out)
        return timed(lambda: torch.mm(a, b, out=out), 2)
