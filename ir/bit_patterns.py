"""Values as the bit patterns that registers hold, and back; bits cut into other elements.

Machine types have their own bits (integers two's complement); types that live only packed have
their stored codes (``DType.encode``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.ir.dtypes import DType

Patterns = npt.NDArray[np.uint64]
_NATIVE = {"f64": "float64", "f32": "float32", "f16": "float16"}


def ones(width: int) -> np.uint64:
    """The lowest ``width`` bits."""
    return np.uint64((1 << width) - 1)


def to_bits(values: Any, dtype: DType) -> Patterns:
    """Values of a dtype, held as the interpreter holds them, as bit patterns. Integers wrap."""
    array = np.asarray(values)
    if not dtype.addressable:
        return dtype.encode(dtype.round(array)).astype(np.uint64)
    if dtype.name in _NATIVE:
        with np.errstate(all="ignore"):
            narrow = np.ascontiguousarray(array.astype(_NATIVE[dtype.name]))
        return narrow.view(f"uint{dtype.bits}").astype(np.uint64)
    if dtype.name == "bf16":
        wide = np.ascontiguousarray(dtype.round(array).astype(np.float32)).view(np.uint32)
        return (wide >> np.uint32(16)).astype(np.uint64)
    return np.ascontiguousarray(array.astype(np.int64)).view(np.uint64) & ones(dtype.bits)


def from_bits(bits: Patterns, dtype: DType) -> Any:
    """The values of bit patterns, held as the interpreter holds them."""
    if not dtype.addressable:
        return dtype.decode(bits).astype(dtype.host)
    if dtype.name in _NATIVE:
        narrow = bits.astype(f"uint{dtype.bits}").view(_NATIVE[dtype.name])
        return narrow.astype(dtype.host)
    if dtype.name == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype.kind == "int":
        up = np.int64(64 - dtype.bits)
        return ((np.ascontiguousarray(bits).view(np.int64) << up) >> up).astype(dtype.host)
    return bits.astype(dtype.host)


def recut(bits: Patterns, width: int, registers: int, new: int) -> Patterns:
    """Patterns of ``width`` bits [registers, lanes], a lane's bits one after another, cut into
    ``registers`` patterns of ``new`` bits."""
    lanes = bits.shape[1]
    single = (bits[:, None] >> np.arange(width, dtype=np.uint64)[:, None]) & np.uint64(1)
    split = single.reshape(registers, new, lanes)
    placed = split << np.arange(new, dtype=np.uint64)[:, None]
    joined: Patterns = placed.sum(axis=1, dtype=np.uint64)
    return joined
