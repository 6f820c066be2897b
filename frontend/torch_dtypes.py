"""Torch dtypes and ours, both ways."""

from __future__ import annotations

import torch

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import UnsupportedError

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
_TORCH = {name: dtype for dtype, name in _NAMES.items()}


def ir_dtype(dtype: torch.dtype) -> DType:
    """Our element type for a torch dtype; UnsupportedError if there is none."""
    name = _NAMES.get(dtype)
    if name is None:
        raise UnsupportedError(f"{dtype} has no element type in the IR; convert to float32")
    return TABLE[name]


def has_ir_dtype(dtype: torch.dtype) -> bool:
    """Whether ``ir_dtype`` knows the dtype."""
    return dtype in _NAMES


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of an element type that has one."""
    return _TORCH[dtype.name]
