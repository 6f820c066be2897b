"""Folders that vanish, fill up or become read-only while kernels are compiled: they run all the
same, what was kept stays, and one warning says what happened and what helps."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.runtime.faults import (
    FORKS,
    Rows,
    can_mount,
    in_child,
    mount_read_only,
    mount_small,
    own_mounts,
)
from tilewright.ir.errors import TuningError
from tilewright.runtime import tuned
from tilewright.runtime.cache import Cache, CacheWarning
from tilewright.runtime.native_code import kernel_cache
from tilewright.runtime.settings import settings
from tilewright.runtime.tracing.parts import Part
from tilewright.runtime.tracing.recorder import Recorder, TraceWarning, now
from tilewright.runtime.tuned import TunedSchedules, TuningWarning
from tilewright.runtime.tuning.database import Database, Winner

MOUNTS = pytest.mark.skipif(not can_mount(), reason="needs mounts of its own: run as root")
KEPT = "kept"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own cache folder with one entry."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "kernels"))
    settings.cache_clear()
    kernel_cache.cache_clear()
    kernel_cache().put(KEPT, {}, b"an entry")
    yield tmp_path / "kernels"
    kernel_cache.cache_clear()


def compiled_with_one_warning(*words: str) -> None:
    """New kernels run; what was kept is whole, nothing half lies about."""
    cache = kernel_cache()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert not any(Rows().wrong() for _ in range(3))
    texts = [str(x.message) for x in heard if issubclass(x.category, CacheWarning)]
    assert len(texts) == 1, texts
    missing = [word for word in (str(cache.root), *words) if word not in texts[0]]
    assert not missing, texts[0]
    assert not list(cache.root.glob("*.tmp")) if cache.root.is_dir() else True


def kept() -> bool:
    found = Cache(kernel_cache().root).get(KEPT)
    return found is not None and found.payload == b"an entry"


def test_a_removed_folder_is_made_again(folder: Path) -> None:
    first, second = Rows(), Rows()
    assert not first.wrong()
    shutil.rmtree(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not first.wrong() and not second.wrong()
    assert len(list(folder.glob("*.twk"))) == 1  # the second one's


def test_a_file_in_the_folders_place(folder: Path) -> None:
    folder.rename(folder.with_name("aside"))
    folder.write_text("somebody's")
    compiled_with_one_warning("Move away the file", "TILEWRIGHT_CACHE_DIR")
    assert folder.read_text() == "somebody's"
    folder.unlink()
    folder.with_name("aside").rename(folder)
    assert kept() and not Rows().wrong()
    assert len(list(folder.glob("*.twk"))) == 2  # kept again as soon as that is possible


@MOUNTS
def test_a_folder_that_becomes_read_only(folder: Path) -> None:
    def work() -> None:
        own_mounts()
        mount_read_only(folder)
        compiled_with_one_warning("Read-only file system", "write to it")
        assert kept()

    assert in_child(work) == 0
    assert [path.name for path in folder.iterdir()] == [f"{KEPT}.twk"]


@MOUNTS
def test_a_disk_that_fills_up(folder: Path) -> None:
    def work() -> None:
        own_mounts()
        mount_small(folder, "12k")
        assert kernel_cache().put(KEPT, {}, b"an entry")
        (folder / "others").write_bytes(bytes(4096))
        compiled_with_one_warning("No space left on device", "Make room")
        assert kept()
        (folder / "others").unlink()

    assert in_child(work) == 0


@FORKS
def test_a_limit_of_file_sizes(folder: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        compiled_with_one_warning("File too large", "ulimit -f")
        assert kept()

    assert in_child(work) == 0


# ---- tuned schedules


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database with one schedule for a kernel that nobody calls."""
    monkeypatch.setenv("TILEWRIGHT_TUNING", str(tmp_path / "own" / "tuning.sqlite3"))
    settings.cache_clear()
    monkeypatch.setattr(tuned, "LOOK_SECONDS", 0.0)
    found = Database()
    found.add_all(winners=[Winner("kernel", (3,), "device", {"rows": 4}, 1.0, 0.5)])
    yield found
    settings.cache_clear()


def looked(schedules: TunedSchedules, times: int = 3) -> list[str]:
    """The warnings of looking so often, with nothing waited for."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(times):
            schedules.look_at = 0.0
            schedules.look()
    return [str(x.message) for x in heard if issubclass(x.category, TuningWarning)]


def test_a_database_whose_folder_vanishes_takes_its_schedules_along(database: Database) -> None:
    schedules = TunedSchedules()
    known = [(looked(schedules), schedules.any)]
    shutil.rmtree(database.path.parent)
    known.append((looked(schedules), schedules.any))
    database.add_all(winners=[Winner("kernel", (3,), "device", {"rows": 8}, 1.0, 0.5)])
    known.append((looked(schedules), schedules.any))
    assert known == [([], True), ([], False), ([], True)]


def test_a_database_that_another_process_holds_for_long(database: Database) -> None:
    schedules = TunedSchedules()
    with closing(sqlite3.connect(database.path)) as other:
        other.isolation_level = None
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        (text,) = looked(schedules)
        assert "database is locked" in text and "schedules that they have" in text
        assert not schedules.any
    assert not looked(schedules) and schedules.any  # and again when it is free


@MOUNTS
def test_a_database_on_a_read_only_or_full_disk(database: Database) -> None:
    folder = database.path.parent

    def look_and_write(prepare: Callable[[], None], words: str) -> Callable[[], None]:
        def work() -> None:
            own_mounts()
            prepare()
            schedules = TunedSchedules()
            texts = looked(schedules)
            assert schedules.any or len(texts) == 1, texts
            with pytest.raises(TuningError, match=words):
                many = [Winner(f"k{n}", (3,), "device", {}, 1.0, 0.5) for n in range(3000)]
                database.add_all(winners=many)
            looked(schedules)

        return work

    def full() -> None:
        held = {path.name: path.read_bytes() for path in folder.iterdir()}
        mount_small(folder, "128k")
        for name, data in held.items():
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)

    read_only = look_and_write(lambda: mount_read_only(folder), "read.?only|can be written")
    assert in_child(read_only) == 0
    assert in_child(look_and_write(full, "full")) == 0
    assert [x.kernel for x in database.winners()] == ["kernel"]


# ---- traces


def test_a_trace_whose_folder_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(tmp_path / "trace", {})
    monkeypatch.setattr(now, "recorder", Recorder(part))
    rows = Rows()
    assert not rows.wrong()
    shutil.rmtree(tmp_path / "trace")
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        assert not rows.wrong() and not rows.wrong(51) and not Rows().wrong()
    part.close()


@MOUNTS
def test_a_trace_on_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_TRACE", str(tmp_path))
    settings.cache_clear()

    def work() -> None:
        own_mounts()
        mount_small(tmp_path, "16k")
        monkeypatch.setattr(now, "recorder", Recorder())
        with pytest.warns(TraceWarning, match=f"process {os.getpid()} ends here: No space left"):
            assert not Rows().wrong()
        with warnings.catch_warnings():
            warnings.simplefilter("error", TraceWarning)
            assert not Rows().wrong()

    assert in_child(work) == 0
