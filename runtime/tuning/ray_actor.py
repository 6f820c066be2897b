"""What runs on a worker of a Ray cluster: trials, one after the other, each in its own process.

Ray starts it there by its name; it does not import Ray itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tilewright.runtime import threads
from tilewright.runtime.fingerprint import source_hash
from tilewright.runtime.settings import settings
from tilewright.runtime.tuning.local import LocalWorkers
from tilewright.runtime.tuning.scratch import ScratchFolder
from tilewright.runtime.tuning.trial import Outcome
from tilewright.runtime.tuning.workers import Job, Run

LOOK_SECONDS = 3600.0
_STARTING = 300.0  # seconds for torch to be imported
_THREADS = (
    "import os; os.environ.pop('OMP_NUM_THREADS', None); "
    "import torch; print(torch.get_num_threads())"
)


@dataclass(frozen=True)
class Facts:
    """What a driver has to know of a worker. ``device`` as in device.py, ``source``: the hash of
    its Tilewright."""

    device: str
    source: str
    machine: str
    process: int


class TrialActor:
    """Runs jobs as LocalWorkers does, on as many threads as ``cpus`` allow. ``run`` and
    ``describe`` are importable by name."""

    def __init__(
        self, timeout: float, gpu: bool, cpus: int, run: Run, describe: Callable[[bool], str]
    ) -> None:
        threads.set_num_threads(usual_threads(cpus))
        self._facts = Facts(describe(gpu), source_hash(), platform.node(), os.getpid())
        self._workers = LocalWorkers(1, timeout, run=run)
        self._folder = ScratchFolder()

    def facts(self) -> Facts:
        """Who this is."""
        return self._facts

    def run(self, job: Job) -> tuple[Outcome, ...]:
        """The outcomes of a job, however it ends. Its folder is one of this machine."""
        self._workers.submit(replace(job, folder=self._folder.path))
        while True:
            for done in self._workers.wait(LOOK_SECONDS):
                return done.outcomes

    def close(self) -> None:
        """Removes what is on the disk; nothing runs any more."""
        self._workers.__exit__()
        self._folder.remove()


def usual_threads(cpus: int) -> int:
    """What a program uses that runs on this machine, but not more than Ray lets us have.

    Ray sets OMP_NUM_THREADS to the processors that an actor holds, which counts twice what cores
    with two threads have; schedules are looked up by the number that programs use.
    """
    if cpus <= 1:
        return 1
    chosen = settings().num_threads
    if chosen:
        return chosen
    done = subprocess.run(
        [sys.executable, "-c", _THREADS],
        capture_output=True,
        text=True,
        check=True,
        timeout=_STARTING,
    )
    return min(cpus, int(done.stdout))
