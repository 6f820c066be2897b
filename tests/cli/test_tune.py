"""``tilewright tune``: within a budget, from a file or a trace; what is kept, however it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import EXAMPLES, Command
from tests.runtime.tuning.kernels import SOFTMAX
from tests.runtime.tuning.processes import of_session
from tilewright.bench.tuning_kills import kill_one
from tilewright.cli.long_runs import duration
from tilewright.cli.tune_output import Live
from tilewright.ir.errors import SettingError
from tilewright.runtime.tuning.database import Database, Trial
from tilewright.runtime.tuning.task import KernelTask, TensorShape
from tilewright.runtime.tuning.tuner import TaskState

Refused = Callable[..., str]
MAIN = sys.executable, "-c", "from tilewright.cli import main; main()"
BRIEF = "--budget", "2s"
ENOUGH = "--budget", "60s"  # for a handful of schedules, after which it ends: a few seconds
SCRIPT = """
import sys, torch, tilewright
program = tilewright.Program(tilewright.parse(open(sys.argv[1]).read()))
program(torch.ones(64, 50))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kernel with a handful of schedules."""
    file = tmp_path_factory.mktemp("programs") / "softmax.tw"
    file.write_text(SOFTMAX.replace("LENGTH", "50"))
    return str(file)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "tuning.sqlite3")


@pytest.fixture(scope="module")
def tuned(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a run that tries all schedules, for tests that only read it."""
    file = tmp_path_factory.mktemp("tuned") / "tuning.sqlite3"
    from typer.testing import CliRunner

    from tilewright.cli import app

    wanted = ["tune", program, "-s", "N=64", *ENOUGH, "--database", str(file)]
    done = CliRunner().invoke(app, wanted)
    assert done.exit_code == 0, done.output
    assert " on " in done.stderr.splitlines()[0] and "1 kernel, 60s" in done.stderr
    head, row, last = done.stdout.splitlines()
    assert head.split() == ["kernel", "inputs", "schedule", "gain", "tried", "failed"]
    assert row.startswith("normed   64x50") and row.endswith(" 7/7   none")  # finals count once
    assert last in {"0 better schedules for 1 kernel", "1 better schedule for 1 kernel"}
    return file


def test_what_was_tried_and_won_is_kept(tuned: Path) -> None:
    trials, winners = Database(tuned).trials(), Database(tuned).winners()
    assert trials and all(x.state == "ok" and x.ratio for x in trials)
    assert len(winners) == 1 and winners[0].kernel == trials[0].kernel


def test_results_are_shown(tilewright: Command, tuned: Path, database: str) -> None:
    shown = tilewright("tune", "show", "--database", str(tuned))
    assert shown.code == 0, shown
    _, row, last = shown.out.splitlines()
    count = len(Database(tuned).trials())
    assert row.startswith("normed   64x50") and " cores, " in row
    assert last == f"1 schedule, {count} trial{'s' * (count > 1)} in {tuned}"
    missing = tilewright("tune", "show", "--database", database)
    assert missing.code == 2 and f"there is no database {database}" in missing.err
    Database(Path(database)).add_all()
    empty = tilewright("tune", "show", "--database", database)
    assert empty.out.splitlines() == [f"0 schedules, 0 trials in {database}"]


def test_results_travel(tilewright: Command, tuned: Path, tmp_path: Path) -> None:
    file, others = str(tmp_path / "out.json"), [str(tmp_path / name) for name in "ab"]
    done = tilewright("tune", "export", file, "--database", str(tuned))
    assert done.code == 0 and done.out.endswith(f"1 schedule written to {file}\n")
    again = tilewright("tune", "export", file, "--database", str(tuned))
    assert again.code == 2 and "exists: name another file, or --force" in again.err
    assert tilewright("tune", "export", file, "--force", "--database", str(tuned)).code == 0
    for other, command, source in (
        (others[0], "import", file),
        (others[1], "merge", str(tuned)),
        (others[1], "merge", others[0]),
    ):
        done = tilewright("tune", command, source, "--database", other)
        assert done.code == 0 and done.out.endswith(f"in {other}\n")
        found = Database(Path(other))
        assert found.trials() == Database(tuned).trials()
        assert found.winners() == Database(tuned).winners()
        assert found.tasks() == Database(tuned).tasks()
    assert done.out == f"0 new trials and 0 new schedules in {others[1]}\n"


def test_resuming_goes_on_where_it_stopped(
    tilewright: Command, program: str, tuned: Path, database: str
) -> None:
    tilewright("tune", "merge", str(tuned), "--database", database)
    before = len(Database(Path(database)).trials())
    options = "-s", "N=64", *ENOUGH, "--database", database
    done = tilewright("tune", program, *options, "--resume")
    assert done.code == 0, done
    assert done.out.splitlines()[1].split()[-2] == "7/7"
    after = Database(Path(database))
    assert len(after.trials()) > before >= 6 and len(after.winners()) == 1
    unique = {tuple(x.choice.items()) for x in after.trials()}
    assert len(unique) == 6  # the finalists once more, nothing else


def test_a_trace_is_tuned(
    tilewright: Command, refused: Refused, program: str, tmp_path: Path, database: str
) -> None:
    script, trace = tmp_path / "script.py", tmp_path / "trace.json"
    script.write_text(SCRIPT)
    command = "trace", "-o", str(trace), "--", sys.executable, str(script), program
    subprocess.run([*MAIN, *command], check=True, capture_output=True)
    done = tilewright("tune", str(trace), *ENOUGH, "--database", database)
    assert done.code == 0, done
    assert done.out.splitlines()[1].startswith("normed   64x50")
    (task,) = Database(Path(database)).tasks()
    assert task.inputs[0].shape == (64, 50) and task.size_class == (6,)
    text = trace.read_text()
    trace.write_text(json.dumps({**json.loads(text), "kernels": []}))
    assert "no kernel whose schedule could be tuned" in refused("tune", str(trace))
    trace.write_text(text[:-40])
    assert "is damaged: it is not JSON" in refused("tune", str(trace))


def test_a_workload_is_tuned(tilewright: Command, database: str) -> None:
    done = tilewright("tune", "attention/L128 ", *BRIEF, "--database", database)
    assert done.code == 0 and "1x8x128x64" in done.out, done


def test_refusals(refused: Refused, program: str, tmp_path: Path, database: str) -> None:
    kept = "--database", database
    assert "no-such-file.tw" in refused("tune", "no-such-file.tw", *kept)
    assert "did you mean 'attention'" in refused("tune", "attentoin", *kept)
    assert "no problem of fused 'nothing'" in refused("tune", "fused/nothing", *kept)
    for text in ("soon", "0s", "-1s", "5 days", ""):
        message = refused("tune", program, "--budget", text, *kept)
        assert f"--budget {text!r}: a time such as 60s, 10m or 1h is expected" in message
    assert "--timeout 'x'" in refused("tune", program, "--timeout", "x", *kept)
    assert "has no size Q" in refused("tune", program, "-s", "Q=1", *kept)
    assert "TILEWRIGHT_TUNING=off: name a database" in refused("tune", program, "-s", "N=64")
    assert not Path(database).exists()
    Path(database).write_bytes(b"letters" * 1000)
    assert "not a database; it was left as it is" in refused("tune", program, "-s", "N=64", *kept)
    assert Path(database).read_bytes() == b"letters" * 1000


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("60s", 60), ("1.5m", 90), ("2 min", 120), ("1h", 3600)]
)
def test_times(text: str, seconds: float) -> None:
    assert duration("--budget", text) == seconds


def rows(database: str) -> int:
    """How many trials another process has kept until now."""
    try:
        with closing(sqlite3.connect(database)) as file:
            return int(file.execute("SELECT count(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_an_interruption_keeps_everything(database: str, cache_folder: Path) -> None:
    """Ctrl-C reaches the whole group of processes, trials included."""
    attention = str(EXAMPLES / "attention.tw")
    process = subprocess.Popen(
        [*MAIN, "tune", attention, "-s", "N=64,M=64", "--budget", "300s", "--database", database],
        env={**os.environ, "TILEWRIGHT_CACHE_DIR": str(cache_folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while rows(database) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    known = rows(database)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert rows(database) >= known >= 2
    assert f"stopped; what was measured is kept in {database} (go on with --resume)" in err
    assert "attention" in out and "Traceback" not in err and "Process " not in err
    end = time.monotonic() + 20
    while of_session(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not of_session(process.pid)


def test_a_killed_run_loses_the_trial_under_way_at_most(
    program: str, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(cache_folder))
    draw = random.Random(3)
    for _ in range(3):
        kill = kill_one(tmp_path / "tuning.sqlite3", tmp_path, draw)
        assert kill.lost <= 1 and not kill.gone and not kill.error and not kill.outlived, kill
    assert kill.rows > 0


def state(name: str, shapes: list[tuple[int, ...]], ratio: float | None, failed: int) -> TaskState:
    inputs = tuple(TensorShape(shape, tuple(range(len(shape)))) for shape in shapes)
    task = KernelTask(name, "k" * 32, "", "host", "mlir", inputs, (3,))
    best = Trial("k" * 32, (3,), "cpu", {"rows": 4}, "ok", 1.0, ratio) if ratio else None
    made = TaskState(task, 10.0, schedules=951, choices=set("abcdefghijk"), best=best)
    made.failures = {"timeout": failed} if failed else {}
    return made


def test_lines_of_kernels_fit_a_terminal_of_80_columns() -> None:
    live = Live(3, 60.0)
    live._console.width = 80
    long = [(1, 32, 2048, 128), (1, 8, 2048, 128), (1, 8, 2048, 128)]
    for each in (
        state("attention", long, 0.5, 3),
        state("softmax", [(64, 50)], None, 0),
        state("a_name_as_long_as_anyone_could_wish_for_a_kernel", long, 1.0, 12),
    ):
        for alive in (False, True):
            line = live._line(each, alive).plain
            assert len(line) <= 80 and "12/951 tried" in line
    assert live._line(state("attention", long, 0.5, 3)).plain == (
        "attention 1x32x2048x128 1x8x2048x128 1x8x2…  best 2.00x   12/951 tried  3 failed"
    )


def test_nothing_is_better_than_the_default_until_it_is() -> None:
    """A choice that takes longer leaves the default the best."""
    assert "best 1.00x" in Live(1, 60.0)._line(state("softmax", [(64, 50)], 1.25, 0)).plain


def test_inputs_without_elements_are_refused(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "softmax.tw"
    path.write_text(
        "graph f<N, M>(%x: tensor<N x M x f32>) { %o = tensor.softmax %x {axis = 1} return %o }"
    )
    message = refused("tune", str(path), "--size", "N=0,M=4", "--budget", "5s")
    assert "%x is 0 x 4 x f32" in message and "without elements: nothing to measure" in message


def test_zero_and_nonsense_are_no_times() -> None:
    for text in ("0", "1e3", "\u0661s", "s"):
        with pytest.raises(SettingError):
            duration("--budget", text)
