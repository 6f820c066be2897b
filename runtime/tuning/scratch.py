"""A folder for a while, which the next start removes if its process could not: one that was killed.

Its process holds a lock on a file in it, which the system gives back however the process ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PREFIX = "tilewright-tune-"
_LOCK = "in-use"
_YOUNG_SECONDS = 60.0  # a folder of that age may not have its lock yet


class ScratchFolder:
    """A new folder in the system's place for such, readable by this user only; ``path`` names it.
    Removed at the end of a ``with``, or by ``remove``."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = tempfile.mkdtemp(prefix=PREFIX)
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        _locked(self._lock)

    def remove(self) -> None:
        """Removes it with all that lies in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)

    def __enter__(self) -> str:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def remove_abandoned() -> None:
    """Removes this user's folders whose processes have ended without doing so."""
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    try:
        found = path.lstat()
        if path.is_symlink() or not path.is_dir() or found.st_uid != os.getuid():
            return False
        if time.time() - found.st_mtime < _YOUNG_SECONDS:
            return False
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # killed before it had a lock, or gone by now
    except OSError:
        return False
    try:
        return _locked(lock)
    finally:
        os.close(lock)


def _locked(file: int) -> bool:
    """Takes the lock, and says whether that was possible. Without such locks nothing is ever taken
    for abandoned."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
