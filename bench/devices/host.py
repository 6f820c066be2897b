"""The processor, with two threads for every provider."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tilewright.bench import machine
from tilewright.bench.machine import Machine, describe_machine
from tilewright.bench.method.clock import Call, Clock, HostClock, timed
from tilewright.bench.method.memory import Growth, growth, resident
from tilewright.bench.method.roofs import Roofs, measure_roofs


@dataclass(frozen=True)
class Host:
    """Memory is the process's own."""

    kind: str = "cpu"
    tensors: str = "cpu"
    floats: str = "f32"

    def describe(self) -> Machine:
        return describe_machine()

    def roofs(self, quick: bool) -> Roofs:
        return measure_roofs(machine.THREADS, quick)

    def evicted(self, roofs: Roofs) -> int:
        return 2 * roofs.cache_bytes

    def clock(self, evicted: int) -> Clock:
        return HostClock(evicted)

    def kernels(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        """Calls return with their results."""

    def once(self, call: Call) -> float:
        return timed(call)

    def growth(self, call: Call) -> Growth | None:
        return growth(call)

    def held(self) -> int | None:
        try:
            return resident()
        except (OSError, LookupError):
            return None

    def tidy(self) -> None:
        gc.collect()
