"""What a device must offer, so that suites can be measured on it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tilewright.bench.machine import Machine
from tilewright.bench.method.clock import Call, Clock
from tilewright.bench.method.memory import Growth
from tilewright.bench.method.roofs import Roofs


class Device(Protocol):
    """Small and picklable: a run gives it to the process of each sitting."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``: which providers can be measured on it."""

    @property
    def tensors(self) -> str:
        """Where torch has its tensors."""

    @property
    def floats(self) -> str:
        """What a GPU's problems are in: bf16, or f32 where that is only rehearsed."""

    def describe(self) -> Machine:
        """The facts that cost nothing to find."""

    def roofs(self, quick: bool) -> Roofs:
        """What it can do at most, measured now; ``quick``: too small to mean anything."""

    def evicted(self, roofs: Roofs) -> int:
        """Bytes that are read to have nothing of a problem in any cache."""

    def clock(self, evicted: int) -> Clock:
        """That measures on it; it empties caches by reading so many bytes."""

    def kernels(self) -> AbstractContextManager[None]:
        """Around everything that calls Tilewright."""

    def finish(self) -> None:
        """Waits until everything that was called is done; an error of it is raised here."""

    def once(self, call: Call) -> float:
        """Seconds of one call, until its results are there."""

    def growth(self, call: Call) -> Growth | None:
        """What a call's memory grows by; None where nobody says. The call is made anyway."""

    def held(self) -> int | None:
        """Bytes in use; None where nobody says."""

    def tidy(self) -> None:
        """Gives back what nobody uses any more."""
