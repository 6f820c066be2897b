"""Two folders that change names at once, and what is done where the system cannot do that.

Linux exchanges two names in one step (renameat2), on most file systems. Elsewhere the old folder
gets a hidden name before the new one gets its own; who finds the hidden one alone puts it back.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: names are relative to the working folder
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_ABANDONED_SECONDS = 3600.0


def exchanged(first: Path, second: Path) -> bool:
    """Exchanges two names; False where the system or the file system cannot: nothing is changed
    then."""
    rename = _renameat2()
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)


@cache
def _renameat2() -> Any:
    """The C library's function, None where it has none."""
    try:
        found = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    text = ctypes.c_char_p
    found.argtypes = (ctypes.c_int, text, ctypes.c_int, text, ctypes.c_uint)
    found.restype = ctypes.c_int
    return found


def put_back(path: Path) -> None:
    """Gives a bundle its name again if its replacement was killed between two renames. A folder
    that cannot be renamed stays: whoever asked finds none."""
    if os.path.lexists(path):
        return
    old = sorted(_beside(path, "old"), key=_changed)
    if old:
        with suppress(OSError):
            os.rename(old[-1], path)


def remove_leftovers(path: Path) -> None:
    """Removes what replacements of this bundle left beside it that were killed an hour ago or
    earlier; nothing while the bundle itself is missing."""
    if not os.path.lexists(path):
        return
    for each in (*_beside(path, "new"), *_beside(path, "old")):
        if time.time() - _changed(each) > _ABANDONED_SECONDS:
            shutil.rmtree(each, ignore_errors=True)


def _beside(path: Path, kind: str) -> Iterator[Path]:
    """Hidden folders of this user that a replacement of this one made."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.{kind}")
    with suppress(OSError):
        for each in path.parent.iterdir():
            plain = name.fullmatch(each.name) and each.is_dir() and not each.is_symlink()
            if plain and each.stat().st_uid == os.getuid():
                yield each


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
