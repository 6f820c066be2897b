"""Sittings in processes of their own: what they bring, and what is left when one dies."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path

import pytest

from tests.bench import toys
from tilewright import BenchError
from tilewright.bench import running
from tilewright.bench.devices import Host
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.one_sitting import Doing, Options, Task
from tilewright.bench.own_process import command
from tilewright.bench.report.document import parse
from tilewright.bench.run_document import document_of
from tilewright.bench.running import Finished, Run, run

ROOFS = Roofs(1e10, 1e11, 1 << 25, {"f32": 1e11})


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toys.LOG, str(tmp_path / "processes"))
    monkeypatch.setattr(Host, "roofs", lambda *_: ROOFS)


def measured(
    rival: toys.Toy, sittings: int, progress: running.Progress = lambda _: None
) -> Finished:
    options = Options(sittings, 0.1, quick=True, processes=True)
    return run(toys.SUITE, [toys.OURSELVES, rival], options, progress)


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_sitting_has_a_process_that_ends_with_it() -> None:
    """What is printed there does not come between."""
    finished = measured(toys.NOISY, 2)
    document = document_of(finished)
    found = toys.processes()
    assert len(found) == 2 and os.getpid() not in found and all(map(gone, found))
    assert document.method.processes and not finished.cut_short
    assert [state.status for state in document.providers] == ["measured", "measured"]
    ours, rival = document.problems[0].results
    assert (rival.form, rival.status) == ("noisy", "ok")
    for times in (ours.warm, ours.cold, rival.warm, rival.cold):
        assert times is not None and len(times.samples) == 2
    assert parse(document.to_json(), "it").to_json() == document.to_json()


def test_a_process_that_dies_leaves_the_sittings_before() -> None:
    finished = measured(toys.KILLED_LATER, 3)
    assert "signal 9" in finished.cut_short and "1 of 3 sittings" in finished.cut_short
    assert not finished.interrupted
    document = document_of(finished)
    assert document.method.sittings == 1
    assert [r.status for r in document.problems[0].results] == ["ok", "ok"]


def test_a_process_that_dies_at_once_says_where_and_its_last_words() -> None:
    with pytest.raises(BenchError, match=r"signal 9 at 'all: calls on .*'; its last words: out of"):
        measured(toys.KILLED_AT_ONCE, 2)


def test_a_provider_that_cannot_be_loaded_again_loses_its_times() -> None:
    document = document_of(measured(toys.LOADED_ONCE, 2))
    ours, rival = document.problems[0].results
    assert ours.warm is not None and len(ours.warm.samples) == 2
    assert (rival.status, rival.reason) == ("failed", "not to be loaded in a later sitting")
    assert rival.warm is None


def test_ctrl_c_ends_the_process_of_the_sitting() -> None:
    def end(under_way: Run) -> None:
        if under_way.sitting == 1 and under_way.done:
            assert not gone(toys.processes()[-1])
            raise KeyboardInterrupt

    finished = measured(toys.NOISY, 3, end)
    assert finished.interrupted and finished.run.options.sittings == 1
    assert len(toys.processes()) == 2 and all(map(gone, toys.processes()))


def test_a_process_whose_run_is_gone_ends() -> None:
    """Killed, that is: nobody tells it to go on."""
    task = Task(toys.SUITE, [toys.OURSELVES], Options(1, 0.1, True), 1 << 16)
    with subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        pickle.dump(task, process.stdin)
        process.stdin.flush()
        assert isinstance(pickle.load(process.stdout), Doing)
        process.stdin.close()
        assert process.wait(60) == 1
    assert not toys.processes()
