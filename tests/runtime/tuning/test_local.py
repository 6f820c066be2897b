"""Trials in processes of their own: whatever a candidate does, it costs one trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.tuning.kernels import prefill
from tests.runtime.tuning.processes import of_session
from tilewright.runtime.tuning.local import LocalWorkers
from tilewright.runtime.tuning.trial import Effort
from tilewright.runtime.tuning.workers import CUT, Done, Job, stopped

TIMEOUT = 4.0


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)  # children import what they run by its name
    import planted

    try:
        with LocalWorkers(2, TIMEOUT, memory=2 << 30, run=planted.candidate) as found:
            yield found
    finally:
        sys.path.remove(folder)


def run(workers: LocalWorkers, *choices: dict[str, int]) -> list[Done]:
    for number, choice in enumerate(choices):
        workers.submit(Job(number, prefill(), (choice,), Effort(0.0, 1)))
    found: list[Done] = []
    while len(found) < len(choices):
        found += workers.wait(60.0)
    return sorted(found, key=lambda done: done.job.number)


def test_a_candidate_that_crashes_hangs_or_eats_all_memory_costs_one_trial(
    workers: LocalWorkers,
) -> None:
    names = ["crash", "abort", "hang", "hungry", "raise", "exit"]
    jobs = [step for name in names for step in ({name: 1}, {"ms": 7})]
    found = run(workers, *jobs)
    outcomes = [done.outcomes[0] for done in found]
    assert all(x.state == "ok" and x.milliseconds == 7 for x in outcomes[1::2])
    bad = dict(zip(names, outcomes[::2], strict=True))
    states = {name: x.state for name, x in bad.items()}
    assert states == {
        "crash": "crash",
        "abort": "crash",
        "hang": "timeout",
        "hungry": "memory",
        "raise": "error",
        "exit": "crash",
    }
    assert "SIGSEGV" in bad["crash"].reason and "code 3" in bad["exit"].reason
    assert bad["raise"].reason == "RuntimeError: no such luck"
    assert bad["hang"].reason.startswith("stopped after")


def test_several_choices_of_one_process_come_back_in_order(workers: LocalWorkers) -> None:
    workers.submit(Job(0, prefill(), ({"ms": 3}, {"ms": 1}, {"ms": 2}), Effort(0.0, 1)))
    done = workers.wait(60.0)[0]
    assert [x.milliseconds for x in done.outcomes] == [3, 1, 2]


def test_leaving_ends_what_runs(workers: LocalWorkers) -> None:
    with LocalWorkers(1, 3600.0, run=workers.run) as brief:
        brief.submit(Job(0, prefill(), ({"hang": 1},), Effort(0.0, 1)))
        process = brief._running[0].process
    assert process.exitcode is not None


_HANGING = """
import planted
from tests.runtime.tuning.kernels import prefill
from tilewright.runtime.tuning.local import LocalWorkers
from tilewright.runtime.tuning.trial import Effort
from tilewright.runtime.tuning.workers import Job
with LocalWorkers(2, 3600.0, run=planted.candidate) as workers:
    workers.submit(Job(0, prefill(), ({"ms": 1},), Effort(0.0, 1)))
    workers.submit(Job(1, prefill(), ({"hang": 1},), Effort(0.0, 1)))
    workers.wait(60.0)
    print("one has ended, one hangs", flush=True)
    workers.wait(3600.0)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_nothing_outlives_a_killed_tuner() -> None:
    here = Path(__file__).parent
    tuner = subprocess.Popen(
        [sys.executable, "-c", _HANGING],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parents[2]}"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert tuner.stdout is not None and b"hangs" in tuner.stdout.readline()
    assert len(of_session(tuner.pid)) >= 3, "tuner, server and child"
    tuner.send_signal(signal.SIGKILL)
    tuner.wait()
    end = time.monotonic() + 20
    while of_session(tuner.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not of_session(tuner.pid)


def test_a_trial_ends_with_the_budget(workers: LocalWorkers) -> None:
    start = time.monotonic()
    workers.submit(Job(0, prefill(), ({"hang": 1},), Effort(0.0, 1), seconds=0.5))
    done: list[Done] = []
    while not done:
        done += workers.wait(60.0)
    assert done[0].outcomes[0].state == CUT
    assert done[0].seconds < TIMEOUT and time.monotonic() - start < 60.0


@given(st.floats(0.1, 99.0), st.floats(0.1, 99.0), st.integers(1, 5))
def test_whose_fault_it_is_that_a_job_was_stopped(
    timeout: float, seconds: float, count: int
) -> None:
    job = Job(0, prefill(), ({},) * count, Effort(0.0, 1), seconds=seconds)
    state = stopped(job, timeout, 1.0).outcomes[0].state
    assert job.limit(timeout) == min(timeout * count, seconds)
    assert state == ("timeout" if timeout * count < seconds else CUT)
