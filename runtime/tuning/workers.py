"""Where trials run: here in processes of their own, or on the workers of a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.tuning.task import KernelTask
from tilewright.runtime.tuning.trial import Effort, Outcome

CUT = "cut"  # state of a trial that the end of the budget has ended: it says nothing of the choice


@dataclass(frozen=True)
class Job:
    """Choices of one kernel to be measured in one process, in turns with the default schedule.
    ``seconds``: what is left for it, whatever its trials may take each (state ``cut`` after that);
    the first job of all may take longer by what starting takes."""

    number: int
    task: KernelTask
    choices: tuple[Choice, ...]
    effort: Effort
    folder: str | None = None
    seconds: float = math.inf

    def limit(self, timeout: float) -> float:
        """Seconds after which it is stopped; ``timeout``: of a trial beside its measuring."""
        return min((timeout + self.effort.seconds) * len(self.choices), self.seconds)


@dataclass(frozen=True)
class Done:
    """A job's outcomes, one for every choice, and the seconds that it took."""

    job: Job
    outcomes: tuple[Outcome, ...]
    seconds: float


Run = Callable[[KernelTask, Sequence[Choice], Effort, str | None], list[Outcome]]


def stopped(job: Job, timeout: float, seconds: float) -> Done:
    """A job that was stopped after ``seconds``: by its time-out, or since no more was left."""
    if job.limit(timeout) < job.seconds:
        return failed(job, "timeout", f"stopped after {seconds:.0f} s", seconds)
    return failed(job, CUT, "the budget was used up", seconds)


def failed(job: Job, state: str, reason: str, seconds: float) -> Done:
    """A job whose process did not answer."""
    return Done(job, tuple(Outcome(state, reason=reason) for _ in job.choices), seconds)


class Workers(Protocol):
    """Runs jobs. Used as a context manager, at whose end nothing is left running."""

    slots: int  # jobs at once
    device: str  # whose times these are: device.device_fingerprint

    def submit(self, job: Job) -> None:
        """Starts a job, or has it wait for a free slot."""

    def wait(self, seconds: float) -> Sequence[Done]:
        """The jobs that have ended; after ``seconds`` at the latest."""

    def __enter__(self) -> Workers: ...

    def __exit__(self, *exception: object) -> None: ...
