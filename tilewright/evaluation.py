"""``tilewright.evaluate``: the interpreter for arrays of any kind. It computes nothing itself."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tilewright.ir.core import Module
from tilewright.ir.dtypes import Array
from tilewright.ir.errors import BindError, SettingError
from tilewright.ir.evaluate import evaluate as interpret

PRECISIONS = (None, "f64")


def evaluate(
    module: Module,
    *inputs: Any,
    precision: str | None = None,
    sizes: dict[str, int] | None = None,
    lanes: bool = False,
) -> tuple[Array, ...]:
    """The results of the first graph of ``module``, at any level, as NumPy arrays.

    ``inputs`` are torch tensors, NumPy arrays or nested lists, shaped as the graph's parameters.
    ``precision="f64"`` computes all floats in double precision, without rounding between (the
    oracle); None rounds every result to its dtype, and holds f16 and bf16 as float32. ``sizes``
    gives size names that follow from no input. ``lanes`` runs a tile program lane by lane, every
    register tile as bits, and refuses reading bits that nothing wrote and races on shared memory.
    Raises BindError, EvaluationError, SettingError.
    """
    if precision not in PRECISIONS:
        raise SettingError(f'precision is None or "f64", not {precision!r}')
    arrays = [to_numpy(x, at) for at, x in enumerate(inputs)]
    return interpret(module, *arrays, precision=precision, sizes=sizes, lanes=lanes)


def to_numpy(value: Any, at: int = 0) -> Array:
    """The numbers of an input; 16-bit floats that NumPy lacks are widened, exactly, to float32."""
    torch = sys.modules.get("torch")  # without torch loaded nothing is a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().resolve_neg().resolve_conj()
        tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        narrow = tensor.dtype in (torch.bfloat16, torch.float16)
        array: Array = tensor.to("cpu", torch.float32 if narrow else tensor.dtype).numpy()
        return array
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise BindError(f"input {at} is not an array of numbers: {error}") from None
    if array.dtype.name == "bfloat16":  # ml_dtypes'
        return array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise BindError(f"input {at} is not an array of numbers, but of {array.dtype}")
    return array
