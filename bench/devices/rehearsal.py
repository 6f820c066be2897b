"""A CUDA device played by CPU tensors, so that suites for GPUs can be tried where there is none:
our kernels run in Triton's interpreter, times and memory mean nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from tilewright.bench.devices.host import Host
from tilewright.bench.machine import Machine
from tilewright.bench.method.roofs import Roofs
from tilewright.gpu import using_schedule

SCHEDULE = (16, 64, 4, 2)  # small, with whole words of codes of every width
EVICTED = 1 << 16  # bytes


@dataclass(frozen=True)
class Rehearsal(Host):
    """In f32: the interpreter's arithmetic in bf16 is not that of a device."""

    kind: str = "cuda"

    def describe(self) -> Machine:
        return replace(super().describe(), kind="rehearsal", gpu="none: Triton's interpreter")

    def roofs(self, quick: bool) -> Roofs:
        del quick
        return super().roofs(True)

    def evicted(self, roofs: Roofs) -> int:
        del roofs
        return EVICTED

    def kernels(self) -> AbstractContextManager[None]:
        return using_schedule(*SCHEDULE)
