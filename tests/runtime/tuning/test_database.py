"""The database of tuning results: what goes in comes out, whoever writes and whatever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ir.errors import TuningError
from tilewright.runtime.tuning.database import Database, Trial, Winner
from tilewright.runtime.tuning.exchange import export, take_file

CHOICES = st.dictionaries(st.sampled_from(["rows", "unroll", "inner_block"]), st.integers(0, 512))
CLASSES = st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple)
STATES = st.sampled_from(["ok", "invalid", "wrong", "crash", "timeout", "memory", "error"])
KERNELS, DEVICES = st.sampled_from(["a" * 32, "b" * 32]), st.sampled_from(["cpu one", "gpu two"])


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    place = draw(KERNELS), draw(CLASSES), draw(DEVICES), draw(CHOICES)
    state = draw(STATES)
    times = st.floats(1e-6, 1e6)
    if state == "ok":
        return Trial(*place, state, draw(times), draw(times))
    return Trial(*place, state, reason=draw(st.text(max_size=20)))


@st.composite
def winners(draw: st.DrawFn) -> Winner:
    place = draw(KERNELS), draw(CLASSES), draw(DEVICES), draw(CHOICES)
    when = f"2026-11-{draw(st.integers(10, 25))}"
    return Winner(*place, draw(st.floats(1e-6, 1e6)), draw(st.floats(0.1, 1.0)), when)


def newest(given: list[Winner]) -> dict[object, str]:
    found: dict[object, str] = {}
    for x in given:
        place = x.kernel, x.size_class, x.device
        found[place] = max(found.get(place, ""), x.measured_at)
    return found


@given(st.lists(trials(), max_size=6), st.lists(trials(), max_size=6), st.lists(winners()))
def test_all_that_is_kept_comes_back_and_merging_adds(
    tmp_path_factory: pytest.TempPathFactory,
    mine: list[Trial],
    others: list[Trial],
    won: list[Winner],
) -> None:
    folder = tmp_path_factory.mktemp("tuning")
    here, there = Database(folder / "here"), Database(folder / "there")
    here.add_all(mine, won[::2])
    there.add_all([*others, *mine[:2]], won[1::2])
    assert {x.id: x for x in here.trials()} == {x.id: x for x in mine}
    for other in (lambda: take_file(here, folder / "there"), lambda: again(there, here, folder)):
        other()
        assert {x.id: x for x in here.trials()} == {x.id: x for x in [*mine, *others]}
        kept = {(x.kernel, x.size_class, x.device): x.measured_at for x in here.winners()}
        assert kept == newest(won)


def again(there: Database, here: Database, folder: Path) -> None:
    """A second merge, through an exported file, changes nothing."""
    if there.path.exists():
        export(there, folder / "file.json")
        assert take_file(here, folder / "file.json") == (0, 0)


@given(st.lists(trials(), min_size=1, max_size=8))
def test_one_kernel_size_class_and_device_can_be_asked_for(
    tmp_path_factory: pytest.TempPathFactory, some: list[Trial]
) -> None:
    database = Database(tmp_path_factory.mktemp("tuning") / "file")
    database.add_all(some)
    first = some[0]
    found = database.trials(first.kernel, first.size_class, first.device)
    place = first.kernel, first.size_class, first.device
    assert {x.id for x in found} == {
        x.id for x in some if (x.kernel, x.size_class, x.device) == place
    }


def trial(number: int) -> Trial:
    return Trial("k" * 32, (3,), "cpu", {"rows": number}, "ok", 1.0, 1.0)


def write_many(path: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        Database(path).add(trial(number))


def test_eight_processes_write_at_once_and_no_row_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_many, args=(tmp_path / "file", 100 * at, 25))
        for at in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = {x.choice["rows"] for x in Database(tmp_path / "file").trials()}
    assert rows == {100 * at + n for at in range(8) for n in range(25)}


_WRITER = """
import sys
from pathlib import Path
from tilewright.runtime.tuning.database import Database, Trial
for number in range(10_000):
    Database(Path(sys.argv[1])).add(
        Trial("k" * 32, (3,), "cpu", {"rows": number}, "ok", 1.0, 1.0)
    )
    print(number, flush=True)
"""


def test_a_killed_writer_loses_at_most_the_row_under_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for moment in (0.0, 0.013, 0.05, 0.11):
        known = {x.choice["rows"] for x in Database(path).trials()}
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        said = [0, *(int(line) for line in process.stdout if line.endswith("\n"))]
        process.wait()
        kept = {x.choice["rows"] for x in Database(path).trials()}
        assert kept >= known | set(said)
        assert max(kept) <= max(*known, *said, 0) + 1


def test_what_is_no_database_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(TuningError, match="not a database; it was left as it is"):
        Database(path).add(trial(1))
    assert path.read_bytes() == b"something else entirely" * 100
    with pytest.raises(TuningError, match="not a database"):
        Database(path).trials()


def test_a_damaged_database_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    Database(path).add_all([trial(number) for number in range(200)])
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data)):
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(TuningError, match=r"malformed|not a database"):
        Database(path).trials()
    assert path.read_bytes() == bytes(data)


def test_a_newer_database_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    newer, foreign = tmp_path / "newer", tmp_path / "foreign"
    Database(newer).add(trial(1))
    with sqlite3.connect(newer) as file:
        file.execute("PRAGMA user_version = 99")
        file.execute("PRAGMA journal_mode = DELETE")
    with sqlite3.connect(foreign) as file:
        file.execute("CREATE TABLE birds (name TEXT)")
    for path, message in ((newer, "newer Tilewright"), (foreign, "something else")):
        before = path.read_bytes()
        with pytest.raises(TuningError, match=message):
            Database(path).add(trial(2))
        with pytest.raises(TuningError, match=message):
            Database(path).winners()
        assert path.read_bytes() == before


def test_a_full_disk_is_an_error_and_old_results_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    Database(path).add(trial(1))
    with sqlite3.connect(path) as file:
        pages = file.execute("PRAGMA page_count").fetchone()[0]
    whole = sqlite3.connect

    def small(*arguments: object, **more: object) -> sqlite3.Connection:
        file = whole(*arguments, **more)  # type: ignore[call-overload]
        file.execute(f"PRAGMA max_page_count = {pages}")
        assert isinstance(file, sqlite3.Connection)
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        with pytest.raises(TuningError, match="full; make room"):
            Database(path).add_all([trial(number) for number in range(2, 4000)])
    assert [x.choice["rows"] for x in Database(path).trials()] == [1]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TuningError, match="see that its folder can be written to"):
        Database(tmp_path / "inside" / "file").add(trial(1))


def test_an_export_never_replaces_a_file_unasked(tmp_path: Path) -> None:
    database, file = Database(tmp_path / "database"), tmp_path / "out.json"
    database.add(trial(1))
    file.write_text("mine")
    with pytest.raises(TuningError, match="exists"):
        export(database, file)
    assert file.read_text() == "mine"
    export(database, file, force=True)
    assert take_file(Database(tmp_path / "other"), file) == (1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ('{"schema": "other"}', "is not an export"),
        ('{"schema": "tilewright-tuning", "version": 9}', "version 9"),
        (
            '{"schema": "tilewright-tuning", "version": 1, "tasks": [], "winners": [],'
            ' "trials": [{"kernel": 3}]}',
            "'kernel' must be a text",
        ),
    ],
)
def test_what_is_no_export_is_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    database = Database(tmp_path / "database")
    with pytest.raises(TuningError, match=message):
        take_file(database, tmp_path / "file")
    assert not database.path.exists()
