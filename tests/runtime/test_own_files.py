"""Code on the disk is read only where nobody else could have written it."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilewright.ir.errors import DataError, TuningError
from tilewright.runtime import own_files
from tilewright.runtime.cache import Cache, CacheWarning
from tilewright.runtime.own_files import UnsafeError, create_own, read_own, require_own
from tilewright.runtime.tuning.database import Database, Trial
from tilewright.runtime.tuning.exchange import take_file

KEY = "ab12" * 16
TRIAL = Trial("a" * 32, (3,), "cpu", {"rows": 4}, "ok", 1.0, 0.5)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "kernels", limit=1 << 20)
    made.put(KEY, {"kernel": "f"}, b"code")
    return made


def entry(cache: Cache) -> Path:
    return cache.root / f"{KEY}.twk"


@pytest.mark.parametrize("uid", [0, 1000, 1001])
@pytest.mark.parametrize("user", [0, 1000])
def test_who_may_have_written_a_file(monkeypatch: pytest.MonkeyPatch, uid: int, user: int) -> None:
    monkeypatch.setattr(own_files.os, "geteuid", lambda: user)
    for mode in range(0o1000):
        status = SimpleNamespace(st_uid=uid, st_mode=stat.S_IFREG | mode)
        if uid in (0, user) and not mode & 0o022:
            require_own(status, "file")  # type: ignore[arg-type]
        else:
            with pytest.raises(UnsafeError, match=r"belongs to user|may be written by"):
                require_own(status, "file")  # type: ignore[arg-type]


def test_the_cache_is_its_owners(cache: Cache) -> None:
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry(cache).stat().st_mode) == 0o600
    assert cache.get(KEY)


def make_folder_writable(cache: Cache) -> None:
    cache.root.chmod(0o770)


def make_file_writable(cache: Cache) -> None:
    entry(cache).chmod(0o602)


@pytest.mark.parametrize("change", [make_folder_writable, make_file_writable])
def test_what_others_may_write_is_not_run(cache: Cache, change: Callable[[Cache], None]) -> None:
    """Neither read nor removed; said once, with what to do."""
    change(cache)
    with pytest.warns(CacheWarning, match=r"may be written by .* Run chmod -R go-w"):
        assert cache.get(KEY) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(KEY) is None
    assert entry(cache).exists()


def test_nothing_is_written_where_others_may_write(cache: Cache) -> None:
    cache.root.chmod(0o777)
    with pytest.warns(CacheWarning, match="may be written by everyone"):
        assert not cache.put("cd34", {}, b"code")
    assert len(list(cache.root.iterdir())) == 1


def test_a_cache_of_somebody_else(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files.os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:  # whose files everybody may trust
        os.chown(cache.root, 4711, 4711)
    with pytest.warns(CacheWarning, match=r"belongs to user \d+.*Make a copy of your own"):
        assert cache.get(KEY) is None


def test_links_and_pipes_in_place_of_entries(cache: Cache, tmp_path: Path) -> None:
    """They count as damage, and what they lead to stays."""
    whole = entry(cache).read_bytes()
    (tmp_path / "elsewhere").write_bytes(whole)
    entry(cache).unlink()
    entry(cache).symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CacheWarning, match=r"damaged entry .*symbolic link"):
        assert cache.get(KEY) is None
    assert (tmp_path / "elsewhere").read_bytes() == whole and not entry(cache).is_symlink()
    os.mkfifo(entry(cache), 0o600)
    with pytest.warns(CacheWarning, match=r"damaged entry .*not a plain file"):
        assert cache.get(KEY) is None


def test_a_link_on_the_way_is_the_users(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.root)
    assert Cache(tmp_path / "link").get(KEY)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    with create_own(tmp_path / "file") as file:
        file.write(bytes(100))
    assert read_own(tmp_path / "file", 100) == bytes(100)
    with pytest.raises(ValueError, match="it has 100 bytes, at most 99"):
        read_own(tmp_path / "file", 99)
    with pytest.raises(FileExistsError):
        create_own(tmp_path / "file")


def test_databases_of_others_are_imported_not_used(tmp_path: Path) -> None:
    mine, theirs = Database(tmp_path / "mine"), Database(tmp_path / "theirs")
    theirs.add(TRIAL)
    assert stat.S_IMODE(theirs.path.stat().st_mode) == 0o600
    theirs.path.chmod(0o666)
    for use in (theirs.trials, lambda: theirs.add(TRIAL)):
        with pytest.raises(TuningError, match=r"by everyone\. Run chmod .*, or .* tune import"):
            use()
    assert take_file(mine, theirs.path) == (1, 0)
    assert mine.trials() == [TRIAL]
    (tmp_path / "link").symlink_to(mine.path)
    with pytest.raises(TuningError, match="is no plain file"):
        Database(tmp_path / "link").trials()


def test_a_database_with_a_view_is_not_asked(tmp_path: Path) -> None:
    """One that never ends would hold every program that looks for schedules."""
    import sqlite3

    database = Database(tmp_path / "file")
    database.add(TRIAL)
    with sqlite3.connect(database.path) as file:
        file.execute("DROP TABLE winners")
        file.execute(
            "CREATE VIEW winners AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
            " SELECT x AS kernel, x AS size_class FROM c"
        )
    file.close()
    with pytest.raises(TuningError, match="other tables than a database of tuning results"):
        database.winners()


def test_the_emulators_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is loaded: it must not be a link, nor be writable by others."""
    from tilewright.backends.cuda import host

    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    made = host._folder.__wrapped__()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o777)
    with pytest.raises(DataError, match="only you may write to"):
        host._folder.__wrapped__()
    made.chmod(0o700)
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="only you may write to"):
        host._folder.__wrapped__()
