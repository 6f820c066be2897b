"""A bundle's folder read without trust, and written whole or not at all.

Files are opened below the opened folder, never through links, and only as long as the manifest
says; their hashes are checked before anyone uses a byte. New folders are made beside and renamed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tilewright.ir.errors import BundleError
from tilewright.runtime.bundle.exchange import exchanged, put_back, remove_leftovers
from tilewright.runtime.bundle.manifest import MANIFEST, File, Manifest
from tilewright.runtime.bundle.manifest_reading import read_manifest
from tilewright.runtime.own_files import READ, UnsafeError, require_own

MOST_MANIFEST = 64 << 20
MOST_FILE = 1 << 31


class Folder:
    """An existing bundle: its manifest, and its files by name. BundleError says what is wrong."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()
        put_back(self.path)
        self.manifest: Manifest = read_manifest(
            self._bytes(MANIFEST, MOST_MANIFEST), str(self.path / MANIFEST)
        )

    def file(self, name: str) -> bytes:
        """The bytes of a listed file, checked against its length and hash."""
        entry = self.manifest.files[name]
        data = self._bytes(name, min(entry.bytes, MOST_FILE))
        place = self.path / name
        if len(data) != entry.bytes:
            raise BundleError(f"{place} is damaged: {len(data)} bytes instead of {entry.bytes}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(
                f"{place} is damaged: its SHA-256 is not the one in {MANIFEST}; make the bundle "
                "again, or copy it again"
            )
        return data

    def _bytes(self, name: str, most: int) -> bytes:
        """A file of the folder, at most so many bytes of it and one more."""
        assert "/" not in name and name not in {"", ".", ".."}, f"checked before: {name!r}"
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            what = "is no folder" if isinstance(error, NotADirectoryError) else error.strerror
            raise BundleError(f"cannot open the bundle {self.path}: {what}") from None
        try:
            _require_own(os.fstat(folder), self.path)
            number = os.open(name, READ, dir_fd=folder)
        except OSError as error:
            raise BundleError(self._unreadable(name, error)) from None
        finally:
            os.close(folder)
        with open(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{self.path / name} is not a plain file")
            _require_own(found, self.path / name)
            if name == MANIFEST and found.st_size > most:
                raise BundleError(f"{self.path / name} has {found.st_size} bytes: no manifest does")
            return file.read(most + 1)

    def _unreadable(self, name: str, error: OSError) -> str:
        place = self.path / name
        if isinstance(error, FileNotFoundError) and name == MANIFEST:
            return f"{self.path} is no bundle: it has no {MANIFEST}"
        if place.is_symlink():
            return f"{place} is a symbolic link; a bundle's files are its own"
        return f"cannot read {place}: {error.strerror}"


def _require_own(status: os.stat_result, place: Path) -> None:
    """Refuses what others may change: its code would run as ours."""
    try:
        require_own(status, place)
    except UnsafeError as error:
        raise BundleError(f"{error}. {error.way}") from None


def write_folder(
    path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False
) -> None:
    """A new bundle, readable by its owner only. An existing folder must be empty, or be a bundle
    and ``force`` given; it is as it was until all is written. BundleError if that fails."""
    check_place(path, force)
    with _fails_as_bundle_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        try:
            fresh.mkdir(mode=0o700)
            for name, data in [*files.items(), (MANIFEST, manifest.to_bytes())]:
                _write(fresh / name, data)
            _put(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_place(path: Path, force: bool) -> None:
    """BundleError if a bundle may not be written there: found out before anything is compiled."""
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link; name the folder itself")
    put_back(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise BundleError(f"{path} exists and is no folder; name another one")
    with _fails_as_bundle_error(path):
        has = sorted(os.listdir(path))
    if not has:
        return
    if MANIFEST not in has:
        raise BundleError(
            f"{path} is a folder with other files ({has[0]} …); name another one: it is kept"
        )
    others = sorted(set(has) - _files_of_bundle(path, has))
    if others:
        raise BundleError(f"{path} has files that are no bundle's ({others[0]} …): it is kept")
    if not force:
        raise BundleError(f"{path} holds a bundle already; --force replaces it, or name another")


def _files_of_bundle(path: Path, has: list[str]) -> set[str]:
    """What of a folder's files belongs to a bundle; of a damaged or newer one what looks so."""
    try:
        return {MANIFEST, *Folder(path).manifest.files}
    except BundleError:
        with open(path / MANIFEST, "rb") as file:
            if b'"tilewright-bundle"' not in file.read(4096):
                return set()
        return {n for n in has if n == MANIFEST or n.endswith((".so", ".h", ".cubin", ".ptx"))}


def entry_of(data: bytes) -> File:
    """The manifest's entry of a file."""
    return File(hashlib.sha256(data).hexdigest(), len(data))


def _write(path: Path, data: bytes) -> None:
    """A file that is on the disk when this returns; a full disk shows here."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(number, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(number)


def _put(fresh: Path, path: Path) -> None:
    """Under its name; what was there goes when the new one stands."""
    if not path.exists() or not os.listdir(path):
        os.rename(fresh, path)
        return
    if exchanged(fresh, path):
        shutil.rmtree(fresh, ignore_errors=True)  # the old one by now
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(8)}.old")
    os.rename(path, old)  # killed here: the next use of the bundle puts it back
    try:
        os.rename(fresh, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _fails_as_bundle_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise BundleError(
            f"cannot write the bundle {path}: {reason}; nothing was changed"
        ) from None
