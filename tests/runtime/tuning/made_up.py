"""Workers whose outcomes a function makes up, and a clock that goes on only where one waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.tuning.trial import Outcome
from tilewright.runtime.tuning.workers import Done, Job

Judge = Callable[[Choice], Outcome]


class Clock:
    """A clock that goes on only where something is waited for."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class MadeUp:
    """Workers whose outcomes a function makes up; ``lasting`` seconds each."""

    device = "made up"
    clock = Clock()

    def __init__(self, judge: Judge, lasting: float = 0.0, slots: int = 1) -> None:
        self.judge, self.lasting, self.slots = judge, lasting, slots
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []

    def __enter__(self) -> MadeUp:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, job: Job) -> None:
        assert len(self.waiting) < self.slots
        self.jobs.append(job)
        self.waiting.append(job)

    def wait(self, seconds: float) -> Sequence[Done]:
        self.clock.now += self.lasting
        job = self.waiting.pop(0)
        return [Done(job, tuple(self.judge(x) for x in job.choices), self.lasting)]

    @property
    def tried(self) -> list[tuple[tuple[str, int], ...]]:
        return [tuple(sorted(job.choices[0].items())) for job in self.jobs]
