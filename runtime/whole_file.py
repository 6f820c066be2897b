"""Files that are there as a whole or not at all, whoever is killed and whatever disk is full."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tilewright.ir.errors import TilewrightError


def write_whole(path: Path, data: bytes, error: type[TilewrightError], force: bool = False) -> None:
    """Writes a new file. Raises ``error`` if it exists (``force`` replaces it) or cannot be
    written; what was there stays then. A device or a pipe (/dev/stdout) is written to as it is."""
    if _is_special(path):
        _write_through(path, data, error)
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with open(fresh, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(fresh, path)
        else:
            os.link(fresh, path)  # fails if it exists by now
    except FileExistsError:
        raise error(f"{path} exists: name another file, or --force to replace it") from None
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        with suppress(OSError):
            fresh.unlink()


def _is_special(path: Path) -> bool:
    """Whether a name stands for a device, a pipe, or an open file (/dev/stdout)."""
    with suppress(OSError):
        if path.exists() and not path.is_dir():
            return not path.is_file() or path.absolute().parts[1:2] in (("dev",), ("proc",))
    return False


def _write_through(path: Path, data: bytes, error: type[TilewrightError]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with open(descriptor, "wb", buffering=0) as device:
            left = memoryview(data)
            while left:
                left = left[device.write(left) or 0 :]
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None


def check_writable(path: Path, error: type[TilewrightError]) -> None:
    """Raises ``error`` where no file of that name could be written, before the work for it is
    done."""
    if _is_special(path):
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        if path.is_dir():
            raise error(f"cannot write {path}: it is a folder; name a file")
        with open(fresh, "xb"):
            pass
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        with suppress(OSError):
            fresh.unlink()


def check_folder(folder: Path, error: type[TilewrightError]) -> None:
    """Raises ``error`` where files could not be written into a folder, which need not exist."""
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise error(f"cannot write into {folder}: {there} is no folder")
        fresh = there / f".{secrets.token_hex(8)}.new"
        fresh.mkdir()
        fresh.rmdir()
    except OSError as problem:
        raise error(f"cannot write into {folder}: {problem.strerror or problem}") from None
