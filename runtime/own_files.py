"""Files whose contents run as our code: read only where nobody else could have written them.

A checksum tells damage from what was written, not who wrote it. So a folder or file counts as safe
if it belongs to this user or to root and neither its group nor everyone may write to it; and it is
opened as it was looked at: never through a link, and asked by its descriptor, not by its name.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

READ = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # or opening a pipe would wait for who writes to it
    | getattr(os, "O_BINARY", 0)
)
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | READ


class UnsafeError(Exception):
    """Somebody else may have written a file or folder: the message says who, ``way`` what to do."""

    def __init__(self, message: str, way: str) -> None:
        self.way = way
        super().__init__(message)


def require_own(status: os.stat_result, place: Path | str) -> None:
    """Raises UnsafeError unless only this user and root can have written what has this status.

    Systems without users of this kind have other ways to protect files; nothing is asked there.
    """
    if not hasattr(os, "geteuid"):
        return
    user = os.geteuid()
    if status.st_uid not in (user, 0):
        raise UnsafeError(
            f"{place} belongs to user {status.st_uid}, who could change the code in it; this is "
            f"user {user}",
            "Make a copy of your own",
        )
    who = "everyone" if status.st_mode & stat.S_IWOTH else "its group"
    if status.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        raise UnsafeError(f"{place} may be written by {who}", f"Run chmod -R go-w {place}")


def open_own_folder(path: Path) -> int:
    """A descriptor of a folder of this user's, to be closed; links on the way to it are followed.
    Raises OSError, UnsafeError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    number = os.open(path, flags)
    try:
        require_own(os.fstat(number), path)
    except UnsafeError:
        os.close(number)
        raise
    return number


def read_own(path: Path, most: int) -> bytes:
    """All of a plain file in an own folder, at most so many bytes. Raises OSError, UnsafeError, and
    ValueError for a link, for what is no plain file, and for a longer one."""
    number = _opened(path)
    with open(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        require_own(status, path)
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size} bytes, at most {most} are allowed")
        return file.read(most)


def _opened(path: Path) -> int:
    try:
        if not hasattr(os, "O_DIRECTORY"):  # no descriptors of folders on this system
            return os.open(path, READ)
        folder = open_own_folder(path.parent)
        try:
            return os.open(path.name, READ, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise ValueError("it is a symbolic link") from None
        raise


def create_own(path: Path) -> BinaryIO:
    """A new file that only this user may read and write, in an own folder. Raises OSError,
    UnsafeError."""
    if hasattr(os, "O_DIRECTORY"):
        os.close(open_own_folder(path.parent))
    return open(os.open(path, NEW, 0o600), "wb")
