"""Python source of a kernel to machine code, through Numba, which is imported when first needed.

Nothing here knows tile programs: ``jit`` is the one set of options that all generated code and all
of ``numerics.py`` is compiled with.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import Callable
from typing import Any, TypeVar

from tilewright.ir.errors import BackendMissingError

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """``function`` compiled on its first call: IEEE arithmetic (x / 0 is infinite, nothing is
    reordered or fused), the GIL released, no objects. Raises BackendMissingError without Numba."""
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        raise BackendMissingError(
            "the numba back end needs Numba: pip install 'numba>=0.63', or choose backend='mlir' "
            f"({error})"
        ) from error
    compiled: F = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    return compiled


def intrinsic(function: F) -> F:
    """What writes LLVM's operations itself (``numba.extending.intrinsic``)."""
    made: F = importlib.import_module("numba.extending").intrinsic(function)
    return made


def build(source: str, symbol: str) -> Callable[..., None]:
    """The function ``symbol`` of a source (``emit.emit_source``), compiled when first called.

    The text stays known under the file name ``<numba kernel symbol>``, for tracebacks.
    """
    name = f"<numba kernel {symbol}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": f"tilewright_kernel_{symbol}"}
    exec(compile(source, name, "exec"), space)
    function: Callable[..., None] = space[symbol]
    return function
