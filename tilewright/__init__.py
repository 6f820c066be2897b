"""Tilewright: a compiler for attention, low-bit matmul and expert-routing kernels.

The public names. All but the errors load when first used, so that ``import tilewright`` costs
nothing and works without torch's, Numba's or MLIR's packages.
"""

import importlib
from typing import TYPE_CHECKING

from tilewright.ir.errors import (
    BackendMissingError,
    BenchError,
    BindError,
    BundleError,
    DataError,
    DeterminismError,
    EvaluationError,
    ExpertError,
    FallbackError,
    MemoryLimitError,
    NotInBundleError,
    ParseError,
    SettingError,
    TargetError,
    TilewrightError,
    TraceError,
    UnsupportedError,
    VerifyError,
)
from tilewright.runtime.locks import GENERATORS as _GENERATORS
from tilewright.runtime.logs import start as _start_logging

if TYPE_CHECKING:
    from tilewright.evaluation import evaluate
    from tilewright.frontend.attention.api import attention
    from tilewright.frontend.attention.layer_input import LayerInputCache
    from tilewright.frontend.attention.merge import merge_attention
    from tilewright.frontend.checkpoints import convert_checkpoint, open_checkpoint
    from tilewright.frontend.compile import compile
    from tilewright.frontend.experts.bank import ExpertBank
    from tilewright.frontend.experts.huggingface import register_experts
    from tilewright.frontend.huggingface import register_attention
    from tilewright.frontend.huggingface_quantizer import TilewrightConfig
    from tilewright.frontend.quantize.linear import linear
    from tilewright.frontend.quantize.model import quantize
    from tilewright.ir.dtypes import table_dtype
    from tilewright.ir.parser import parse
    from tilewright.runtime.bundle.active import use_bundle
    from tilewright.runtime.bundle.bundle import Bundle, load_bundle
    from tilewright.runtime.determinism import deterministic
    from tilewright.runtime.kv_cache.cache import KVCache
    from tilewright.runtime.program import Program
    from tilewright.runtime.quantized.tensor import QuantizedTensor

__version__ = "0.1.0"
_start_logging()

__all__ = [
    "BackendMissingError",
    "BenchError",
    "BindError",
    "Bundle",
    "BundleError",
    "DataError",
    "DeterminismError",
    "EvaluationError",
    "ExpertBank",
    "ExpertError",
    "FallbackError",
    "KVCache",
    "LayerInputCache",
    "MemoryLimitError",
    "NotInBundleError",
    "ParseError",
    "Program",
    "QuantizedTensor",
    "SettingError",
    "TargetError",
    "TilewrightConfig",
    "TilewrightError",
    "TraceError",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "attention",
    "compile",
    "convert_checkpoint",
    "deterministic",
    "evaluate",
    "linear",
    "load_bundle",
    "merge_attention",
    "open_checkpoint",
    "parse",
    "quantize",
    "register_attention",
    "register_experts",
    "table_dtype",
    "use_bundle",
]

_LAZY = {
    "Bundle": "tilewright.runtime.bundle.bundle",
    "ExpertBank": "tilewright.frontend.experts.bank",
    "KVCache": "tilewright.runtime.kv_cache.cache",
    "LayerInputCache": "tilewright.frontend.attention.layer_input",
    "Program": "tilewright.runtime.program",
    "QuantizedTensor": "tilewright.runtime.quantized.tensor",
    "TilewrightConfig": "tilewright.frontend.huggingface_quantizer",
    "attention": "tilewright.frontend.attention.api",
    "compile": "tilewright.frontend.compile",
    "convert_checkpoint": "tilewright.frontend.checkpoints",
    "deterministic": "tilewright.runtime.determinism",
    "evaluate": "tilewright.evaluation",
    "linear": "tilewright.frontend.quantize.linear",
    "load_bundle": "tilewright.runtime.bundle.bundle",
    "merge_attention": "tilewright.frontend.attention.merge",
    "open_checkpoint": "tilewright.frontend.checkpoints",
    "parse": "tilewright.ir.parser",
    "quantize": "tilewright.frontend.quantize.model",
    "register_attention": "tilewright.frontend.huggingface",
    "register_experts": "tilewright.frontend.experts.huggingface",
    "table_dtype": "tilewright.ir.dtypes",
    "use_bundle": "tilewright.runtime.bundle.active",
}

# Packages that may be missing, and what then is to be done.
_NEEDED = {
    "lark": "Lark, which reads programs as text: pip install lark; a bundle's kernels are called "
    "by name without it (tilewright.load_bundle)",
    "transformers": "transformers: pip install 'tilewright[huggingface]'",
}

if not TYPE_CHECKING:  # type checkers take the imports above

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            with _GENERATORS.lock:  # a fork waits: a child would keep the import's locks
                module = importlib.import_module(_LAZY[name])
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _NEEDED:
                raise
            message = f"tilewright.{name} needs {_NEEDED[package]}"
            raise BackendMissingError(message) from error
        value = getattr(module, name)
        globals()[name] = value  # the next use is an ordinary look-up
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
