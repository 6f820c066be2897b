"""Counters that work items count themselves with: 0 before a kernel and after it.

Kernels of one stream run one after the other, so a stream has counters of its own, made once. A
call that is captured into a CUDA graph gets its own for good: graphs may be replayed on any streams
at once.
"""

from __future__ import annotations

import torch

from tilewright.passes.to_tile.whole_blocks.lowbit.program import COUNTERS
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.locks import Guard

AT_A_TIME = 256  # sets that are made at once: a MiB


class Counters:
    """Those of all devices, as i32 tensors of ``COUNTERS`` zeros."""

    def __init__(self) -> None:
        self._guard = Guard()
        self._kept: list[torch.Tensor] = []  # graphs know nothing but addresses
        self._unused: dict[int, list[torch.Tensor]] = {}
        self._of_streams: dict[tuple[int, int], torch.Tensor] = {}

    def of(self, device: torch.device) -> torch.Tensor:
        """Some for a kernel on the current stream of a device."""
        if device.type != "cuda":  # an interpreter, which runs one work item after the other
            return torch.zeros(COUNTERS, dtype=torch.int32)
        if gpus.captured():
            return self._for_good(device)
        key = device.index, gpus.stream(device.index)
        found = self._of_streams.get(key)
        if found is None:
            with self._guard.lock:
                if key not in self._of_streams:
                    self._of_streams[key] = self._new(device)
                found = self._of_streams[key]
        return found

    def _for_good(self, device: torch.device) -> torch.Tensor:
        """Unused ones; where there are none left the graph sets its own to 0 in every replay."""
        with self._guard.lock:
            if unused := self._unused.get(device.index):
                return unused.pop()
        return self._zeros(device, 1)[0]

    def _new(self, device: torch.device) -> torch.Tensor:
        unused = self._unused.setdefault(device.index, [])
        if not unused:
            made = self._zeros(device, AT_A_TIME)
            self._wait(device)  # other streams take theirs of it
            self._kept.append(made)
            unused += made.unbind()
        return unused.pop()

    def _zeros(self, device: torch.device, sets: int) -> torch.Tensor:
        return torch.zeros((sets, COUNTERS), dtype=torch.int32, device=device)

    def _wait(self, device: torch.device) -> None:
        torch.cuda.current_stream(device).synchronize()


counters = Counters()
