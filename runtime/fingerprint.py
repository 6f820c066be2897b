"""What a compiled kernel depends on besides its program: our own sources and the code generators.

Contents are hashed, not times of change, so that an edit of the compiler never meets old kernels.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

FOLDERS = ("ir", "passes", "backends", "runtime")
PACKAGES = ("llvmlite", "torch-mlir", "mlir-python-bindings")


def cache_key(*parts: str) -> str:
    """The name of a compiled kernel: a hash of all that decides its bytes.

    The caller gives the printed IR, the pipeline, the options and the ISA; what the compiler itself
    is goes in here. Lengths go in too, so that parts cannot flow into each other.
    """
    digest = hashlib.sha256()
    for part in (*parts, source_hash(), generator_versions()):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@cache
def source_hash() -> str:
    """A hash of the names and contents of the compiler's own files (read once per process)."""
    return hash_folders(Path(__file__).parent.parent)


def hash_folders(package: Path) -> str:
    """A hash of what lies in the compiler's folders of a package, device headers included."""
    digest = hashlib.sha256()
    root = os.fspath(package)  # texts, not Paths: hundreds of files lie before a first kernel
    for path in _files(root):
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        digest.update(f"{path[len(root) + 1 :]}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


@cache
def generator_versions() -> str:
    """Versions of the packages that turn a program into machine code, and the machine's kind."""
    return f"{platform.system()} {platform.machine()} " + " ".join(map(_version, PACKAGES))


def _files(root: str) -> Iterator[str]:
    # os.walk, because each folder may be a link to the real one, which Path.rglob would not enter
    for folder in FOLDERS:
        for place, names, files in os.walk(os.path.join(root, folder)):
            names[:] = sorted(n for n in names if n != "__pycache__")
            yield from (os.path.join(place, n) for n in sorted(files) if not _is_scrap(n))


def _is_scrap(name: str) -> bool:
    """Byte code, and what editors leave for a moment."""
    return name.startswith(".") or name.endswith((".pyc", "~"))


def _version(package: str) -> str:
    try:
        return f"{package}={metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package}=none"
