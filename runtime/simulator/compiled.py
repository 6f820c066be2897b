"""How the engine's functions are compiled: into one machine function, kept on disk by Numba."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

# into the caller, for Numba passes every array as seven arguments
inlined: Any = numba.njit(inline="always", error_model="numpy")
apart: Any = numba.njit(nogil=True, error_model="numpy")


def entry(function: Callable[..., Any]) -> Any:
    """Compiled once for all programs, and loaded from Numba's cache after that.

    Numba compiles anew when the function's own file has changed, not for the files of what it
    calls; so its stamp becomes that of all files of this folder.
    """
    compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = _stamp()
    return compiled


def _stamp() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
