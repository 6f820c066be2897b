"""How much of a core the loading of experts may take from those that compute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from tilewright.ir.errors import SettingError


@dataclass(frozen=True)
class Pace:
    """The share of one core's time that work on memory may take: 1 is all of it, 0.25 a quarter.

    After every step the thread sleeps as long as makes that share. A decode step that uses all
    cores then waits for a step of about 0.1 ms now and then, and never for a whole copy. What
    counts is the time that the thread had a core: one that waited for it took nothing from others.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        """Raises SettingError for a share that is none."""
        if not 0 < self.share <= 1:
            raise SettingError(f"share must be above 0 and at most 1; it is {self.share}")

    def steps(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
        """[start, stop) in parts of ``size``, each as (start, stop), with a rest after each."""
        for at in range(start, stop, size):
            began = time.thread_time()
            yield at, min(at + size, stop)
            if self.share < 1:
                time.sleep((time.thread_time() - began) * (1 / self.share - 1))


FULL = Pace()
