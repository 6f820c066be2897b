"""Tilewright: a compiler for attention, low-bit matmul and expert-routing kernels.

The public names. All but the errors load when first used, so that ``import tilewright`` costs
nothing and works without torch's, Numba's or MLIR's packages.
"""

import importlib
from typing import TYPE_CHECKING

from tilewright.ir.errors import (
    BackendMissingError,
    BindError,
    EvaluationError,
    FallbackError,
    ParseError,
    SettingError,
    TargetError,
    TilewrightError,
    UnsupportedError,
    VerifyError,
)

if TYPE_CHECKING:
    from tilewright.evaluation import evaluate
    from tilewright.frontend.attention.api import attention
    from tilewright.frontend.attention.merge import merge_attention
    from tilewright.frontend.compile import compile
    from tilewright.frontend.huggingface import register_attention
    from tilewright.ir.parser import parse
    from tilewright.runtime.program import Program

__version__ = "0.1.0"

__all__ = [
    "BackendMissingError",
    "BindError",
    "EvaluationError",
    "FallbackError",
    "ParseError",
    "Program",
    "SettingError",
    "TargetError",
    "TilewrightError",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "attention",
    "compile",
    "evaluate",
    "merge_attention",
    "parse",
    "register_attention",
]

_LAZY = {
    "Program": "tilewright.runtime.program",
    "attention": "tilewright.frontend.attention.api",
    "compile": "tilewright.frontend.compile",
    "evaluate": "tilewright.evaluation",
    "merge_attention": "tilewright.frontend.attention.merge",
    "parse": "tilewright.ir.parser",
    "register_attention": "tilewright.frontend.huggingface",
}

if not TYPE_CHECKING:  # type checkers take the imports above

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value  # the next use is an ordinary look-up
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
