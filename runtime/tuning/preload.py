"""What the fork server of trials imports once, so that a trial begins at once. It computes nothing:
no thread may have been started before a process forks."""

from __future__ import annotations

import importlib
from contextlib import suppress

for _name in (
    "tilewright.passes.to_tile.spaces",
    "tilewright.runtime.tuning.trial",
    "tilewright.backends.mlir.emit",
    "tilewright.backends.mlir.build",
    "llvmlite.binding",
    "numba",
):
    with suppress(ImportError):
        importlib.import_module(_name)
