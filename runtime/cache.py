"""The kernel cache: compiled code on disk under the hash of all that it was made from.

A file a key, written whole or not at all (temporary file, then rename), so that any number of
processes may read, write and delete at once. Losing it costs time only: no failure of the disk
reaches the caller, but it is said once. Nothing here knows what a payload means.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tilewright.runtime import entry_file
from tilewright.runtime.entry_file import Entry
from tilewright.runtime.own_files import READ, UnsafeError, create_own, read_own
from tilewright.runtime.settings import CACHE_DIR, settings

SUFFIX = ".twk"
_TEMPORARY = ".tmp"
_ABANDONED_SECONDS = 3600.0
_MOST_BYTES = 1 << 30  # of an entry that is read
_NEW_SHARE = 64  # the folder is looked through again when one in so many of its entries is new


_OCCUPIED = "Move away the file that lies in the folder's place"
_PERMIT = "Let this user write to it"
_ROOM = "Make room there"
_WAYS = {  # what helps against which error of the system
    errno.EEXIST: _OCCUPIED,
    errno.ENOTDIR: _OCCUPIED,
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f)",
}


class CacheWarning(UserWarning):
    """The kernel cache is damaged or cannot be used; kernels are compiled again."""


@dataclass(frozen=True)
class EntryInfo:
    """One kept kernel as ``tilewright cache ls`` shows it."""

    key: str
    metadata: dict[str, Any]
    bytes: int
    last_used: float


@dataclass(frozen=True)
class CacheStats:
    """What lies on disk, and what this process did with it."""

    root: Path
    limit: int
    entries: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    damaged: int = 0
    written: int = 0
    evicted: int = 0


class Cache:
    """Bounded, content-addressed store; the least recently used entries go first.

    ``root`` and ``limit`` (bytes; 0 keeps nothing) default to the settings. Looking through the
    folder takes time for each entry, so a process does so when it has added 1/64 to the entries
    that it found, or 1/64 of the limit: for each process that writes, the limit may be passed by
    that share.
    """

    def __init__(self, root: Path | str | None = None, limit: int | None = None) -> None:
        self.root = settings().cache_dir if root is None else Path(root)
        self.limit = settings().cache_size if limit is None else limit
        # One name an event: append is atomic, and unlike a lock it survives a fork at any time.
        self._events: list[str] = []
        self._said: set[str] = set()  # what the user was told to do
        self._unseen = 0, 0  # entries and bytes to be written before the folder is looked through

    def get(self, key: str) -> Entry | None:
        """The entry of a key, or None (a miss); a damaged one is reported, removed and a miss."""
        entry = self._read(key) if self.limit else None
        if entry is None:
            self._events.append("misses")
            return None
        self._events.append("hits")
        with suppress(OSError):  # time of last use, for eviction; a read-only folder is fine
            os.utime(self._path(key))
        return entry

    def put(self, key: str, metadata: Mapping[str, Any], payload: bytes) -> bool:
        """Keep an entry (metadata must be JSON); False if it could not be or was too large."""
        data = entry_file.pack(key, metadata, payload)
        if len(data) > self.limit:
            return False
        try:
            self._write(self._path(key), data)
        except OSError as error:
            self._complain("write", error)
            return False
        except UnsafeError as error:
            self._refuse(error)
            return False
        self._events.append("written")
        entries, room = self._unseen[0] - 1, self._unseen[1] - len(data)
        if entries < 0 or room < 0:
            entries, room = self._evict(keep=key) // _NEW_SHARE, self.limit // _NEW_SHARE
        self._unseen = entries, room
        return True

    def entries(self) -> tuple[EntryInfo, ...]:
        """All entries, the last used first; files that are none are left out."""
        found = [info for file in self._files() if (info := _describe(file))]
        return tuple(sorted(found, key=lambda info: -info.last_used))

    def stats(self) -> CacheStats:
        """Number and bytes of all entries on disk, and this process's counters."""
        sizes = [status.st_size for _, status in self._statuses()]
        counts = Counter(self._events)
        return CacheStats(self.root, self.limit, len(sizes), sum(sizes), **counts)

    def clear(self) -> int:
        """Remove all entries; says how many."""
        return sum(_unlink(Path(file)) for file in self._files())

    def _path(self, key: str) -> Path:
        assert key.isalnum(), f"a cache key is a hash in letters and digits, not {key!r}"
        return self.root / f"{key}{SUFFIX}"

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        try:
            return entry_file.unpack(key, read_own(path, _MOST_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain("read", error)
        except UnsafeError as error:
            self._refuse(error)
        except ValueError as error:
            self._events.append("damaged")
            _unlink(path)  # first, since a warning may be turned into an exception
            text = f"damaged entry {path} of the kernel cache ({error}); compiling it again"
            warnings.warn(text, CacheWarning, stacklevel=3)
        return None

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f"{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            with _create(temporary) as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            _unlink(temporary)
            raise

    def _evict(self, keep: str) -> int:
        """Remove the least recently used until the rest fits; the newcomer stays. Says how many
        entries there were."""
        statuses = sorted(self._statuses(), key=lambda item: item[1].st_mtime_ns)
        total = sum(status.st_size for _, status in statuses)
        for name, status in statuses:
            if total <= self.limit:
                break
            if name != f"{keep}{SUFFIX}":
                total -= status.st_size
                self._events.extend(["evicted"] * _unlink(self.root / name))
        self._sweep()
        return len(statuses)

    def _sweep(self) -> None:
        """Remove temporary files whose writer died: none lives for an hour."""
        for path in self._files(_TEMPORARY):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    _unlink(path)

    def _files(self, suffix: str = SUFFIX) -> Iterator[Path]:
        try:
            names = os.listdir(self.root)
        except OSError:
            return
        for name in names:
            if name.endswith(suffix):
                yield self.root / name

    def _statuses(self) -> Iterator[tuple[str, os.stat_result]]:
        """Each entry's file name and facts: there may be tens of thousands."""
        with suppress(OSError), os.scandir(self.root) as files:
            for file in files:
                with suppress(OSError):  # another process may have removed it
                    if file.name.endswith(SUFFIX):
                        yield file.name, file.stat()

    def _complain(self, what: str, error: OSError) -> None:
        way = _WAYS.get(error.errno or 0, "See what is wrong with it")
        self._say(way, f"cannot {what} the kernel cache {self.root}: {error.strerror or error}")

    def _refuse(self, error: UnsafeError) -> None:
        """Says that others could have written what would run here."""
        self._say(error.way, f"the kernel cache is not used: {error}")

    def _say(self, way: str, what: str) -> None:
        """A warning, once for each way out."""
        if way in self._said:
            return
        self._said.add(way)
        text = (
            f"{what}; kernels are compiled in each process. {way}, or set {CACHE_DIR.name} to "
            "another folder"
        )
        warnings.warn(text, CacheWarning, stacklevel=4)


def _create(path: Path) -> BinaryIO:
    """A new file; its folder is made, again if someone removes it in between."""
    for _ in range(8):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return create_own(path)
    return create_own(path)


def _describe(path: Path) -> EntryInfo | None:
    """Facts about one file from its head, without reading its payload."""
    try:
        with open(os.open(path, READ), "rb") as file:
            size = entry_file.metadata_bytes(file.read(entry_file.HEADER_BYTES))
            facts = entry_file.metadata(file.read(size))
            status = os.fstat(file.fileno())
    except (OSError, ValueError):
        return None
    return EntryInfo(path.stem, facts, status.st_size, status.st_mtime)


def _unlink(path: Path) -> int:
    """Remove a file that may be gone already; 1 if it was this call that removed it."""
    try:
        path.unlink()
    except OSError:
        return 0
    return 1
