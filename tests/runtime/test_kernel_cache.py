"""The cache on disk: hits, damage, bounds, other processes, and folders that cannot be used."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.runtime import entry_file, fingerprint
from tilewright.runtime.cache import Cache, CacheWarning
from tilewright.runtime.fingerprint import cache_key

FORK = "fork" in multiprocessing.get_all_start_methods()
KEY = "ab12" * 16


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "kernels", limit=1 << 20)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


def file_of(cache: Cache, key: str = KEY) -> Path:
    return cache.root / f"{key}.twk"


def test_what_was_put_comes_back(cache: Cache) -> None:
    assert cache.get(KEY) is None
    assert cache.put(KEY, {"name": "f", "grid": [["N", 4]]}, b"\0code\xff")
    for reader in (cache, Cache(cache.root)):
        entry = reader.get(KEY)
        assert entry is not None
        assert entry.metadata == {"name": "f", "grid": [["N", 4]]}
        assert entry.payload == b"\0code\xff"
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.written, stats.entries) == (1, 1, 1, 1)
    assert stats.bytes == file_of(cache).stat().st_size
    assert [(e.key, e.metadata["name"]) for e in cache.entries()] == [(KEY, "f")]
    assert cache.clear() == 1
    assert cache.get(KEY) is None and cache.entries() == ()


def test_empty_payload_and_replacement(cache: Cache) -> None:
    cache.put(KEY, {}, b"")
    assert cache.get(KEY) == entry_file.Entry({}, b"")
    cache.put(KEY, {"v": 2}, b"new")
    assert cache.get(KEY) == entry_file.Entry({"v": 2}, b"new")
    assert cache.stats().entries == 1


def test_every_changed_byte_is_noticed_once_and_rebuilt(cache: Cache) -> None:
    cache.put(KEY, {"a": 1}, b"payload")
    whole = file_of(cache).read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        file_of(cache).write_bytes(damaged)
        with pytest.warns(CacheWarning, match=f"damaged entry .*{KEY}.* compiling it again"):
            assert cache.get(KEY) is None
        assert cache.get(KEY) is None  # it is gone: said once
    assert cache.put(KEY, {"a": 1}, b"payload") and cache.get(KEY)
    assert cache.stats().damaged == len(whole)


def test_truncated_and_lengthened_files(cache: Cache) -> None:
    cache.put(KEY, {"a": 1}, b"payload")
    whole = file_of(cache).read_bytes()
    for data in [whole[:n] for n in range(len(whole))] + [whole + b"\0"]:
        file_of(cache).write_bytes(data)
        with pytest.warns(CacheWarning, match=r"bytes long"):
            assert cache.get(KEY) is None


def test_entry_under_another_name_is_refused(cache: Cache) -> None:
    cache.put(KEY, {}, b"payload")
    other = "cd34" * 16
    file_of(cache).rename(file_of(cache, other))
    with pytest.warns(CacheWarning, match="checksum"):
        assert cache.get(other) is None


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=5000)
    for i in range(4):
        cache.put(f"key{i}", {}, bytes(1000))
        os.utime(file_of(cache, f"key{i}"), (1000 + i, 1000 + i))
    assert cache.get("key0")  # used just now, and so the youngest
    cache.put("key4", {}, bytes(1000))
    assert sorted(e.key for e in cache.entries()) == ["key0", "key2", "key3", "key4"]
    assert cache.stats().evicted == 1
    cache.put("large", {}, bytes(4500))
    assert [e.key for e in cache.entries()] == ["large"]
    assert not cache.put("larger", {}, bytes(5000))
    assert [e.key for e in cache.entries()] == ["large"]


def test_a_large_folder_is_bounded_and_seldom_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    real = os.scandir

    def counted(path: Path) -> object:
        nonlocal looked
        looked += 1
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    cache = Cache(tmp_path, limit=200_000)
    for i in range(600):
        cache.put(f"key{i}", {}, bytes(900))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 180_000 < size <= 200_000 + 200_000 // 64
    assert 600 / 4 < looked < 600 / 2  # each of the first 64; then one in 2, 3 and 4
    Cache(tmp_path, limit=200_000).put("key", {}, b"x")  # a process looks at its first
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000


def test_a_large_entry_has_the_folder_looked_through(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=200_000)
    for i in range(200):
        cache.put(f"key{i}", {}, bytes(600))
    cache.put("one", {}, bytes(150_000))
    cache.put("two", {}, bytes(150_000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000


def test_newcomer_stays_even_if_others_are_from_the_future(tmp_path: Path) -> None:
    """As on a shared folder whose machines' clocks differ."""
    cache = Cache(tmp_path, limit=3000)
    for key in ("old1", "old2"):
        cache.put(key, {}, bytes(1000))
        os.utime(file_of(cache, key), (time.time() + 1000,) * 2)
    cache.put("new", {}, bytes(1500))
    assert cache.get("new") and len(cache.entries()) == 2


def test_limit_of_zero_turns_it_off(tmp_path: Path) -> None:
    assert Cache(tmp_path).put(KEY, {}, b"x")
    off = Cache(tmp_path, limit=0)
    assert off.get(KEY) is None
    assert not off.put("other", {}, b"x")
    assert len(list(tmp_path.iterdir())) == 1


def test_abandoned_temporary_files_are_swept(cache: Cache) -> None:
    cache.root.mkdir()
    old, young = cache.root / "a.tmp", cache.root / "b.tmp"
    for path in (old, young):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.put(KEY, {}, b"x")
    assert not old.exists() and young.exists()


def test_folder_that_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "kernels")
    with pytest.warns(CacheWarning, match="cannot read the kernel cache .* in each process"):
        assert cache.get(KEY) is None
    assert cache.get(KEY) is None
    assert not cache.put(KEY, {}, b"x")
    assert cache.entries() == () and cache.clear() == 0 and cache.stats().entries == 0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_failing_writes_are_said_once_and_leave_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(CacheWarning, match=f"cannot write the kernel cache .*{os.strerror(code)}"):
        assert not cache.put(KEY, {}, b"x")
    assert not cache.put(KEY, {}, b"x")
    assert list(cache.root.iterdir()) == []


def test_folder_may_vanish_at_any_time(cache: Cache) -> None:
    cache.put(KEY, {}, b"x")
    file_of(cache).unlink()
    cache.root.rmdir()
    assert cache.get(KEY) is None
    assert cache.put(KEY, {}, b"x") and cache.get(KEY)


def test_folder_may_vanish_while_a_file_is_made_in_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    real = Path.mkdir

    def make_and_lose(path: Path, mode: int, parents: bool, exist_ok: bool) -> None:
        real(path, mode, parents, exist_ok)
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    assert cache.put(KEY, {}, b"x") and cache.get(KEY)
    assert len(made) == 2


def _hammer(root: Path, seed: int, rounds: int) -> None:
    """Writes, reads, evicts and clears the same few keys as other processes do at once."""
    warnings.simplefilter("error", CacheWarning)
    cache = Cache(root, limit=40_000)
    for i in range(rounds):
        key = f"key{(seed + i) % 5}"
        entry = cache.get(key)
        assert entry is None or entry.payload == key.encode() * entry.metadata["times"]
        times = 1000 + (seed * 31 + i) % 2000
        assert cache.put(key, {"times": times}, key.encode() * times)
        if i % 37 == 36:
            cache.clear()
        cache.entries()


@pytest.mark.skipif(not FORK, reason="spawned processes would take seconds to import torch")
def test_concurrent_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    root = tmp_path / "kernels"
    workers = [context.Process(target=_hammer, args=(root, i, 150)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not [path for path in root.iterdir() if path.suffix == ".tmp"]
    assert sum(path.stat().st_size for path in root.iterdir()) <= 40_000


def test_key_depends_on_every_part_and_its_borders() -> None:
    keys = {cache_key(*p) for p in [(), ("",), ("ab",), ("a", "b"), ("b", "a"), ("ab", "")]}
    assert len(keys) == 6
    assert cache_key("a", "b") == cache_key("a", "b")
    assert cache_key("a").isalnum() and len(cache_key("a")) == 64


def test_key_depends_on_sources_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key("a")
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "source_hash", lambda: "other sources")
        assert cache_key("a") != before
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "generator_versions", lambda: "other llvmlite")
        assert cache_key("a") != before
    assert cache_key("a") == before


def test_sources_are_hashed_by_content(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "mlir").mkdir(parents=True)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "backends").symlink_to(real)  # as in this checkout
    source, header = real / "emit.py", real / "mlir" / "device.cuh"
    source.write_text("a = 1\n")
    header.write_text("// device\n")

    def hashed() -> str:
        return fingerprint.hash_folders(tmp_path / "package")

    first = hashed()
    os.utime(source, (1, 1))
    (real / "__pycache__").mkdir()
    (real / "__pycache__" / "emit.pyc").write_bytes(b"compiled")
    assert hashed() == first
    source.write_text("a = 2\n")
    os.utime(source, (1, 1))  # same size, same time, other contents
    second = hashed()
    header.write_text("// Device\n")
    third = hashed()
    header.rename(real / "device.cuh")
    assert len({first, second, third, hashed()}) == 4


def test_own_sources_are_found() -> None:
    files = {
        Path(p).name for p in fingerprint._files(str(Path(fingerprint.__file__).parent.parent))
    }
    assert {"grammar.lark", "core.py", "fingerprint.py"} <= files
