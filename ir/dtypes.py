"""The table of element types: one row per dtype, with exact rounding to it.

Low-bit integers and floats get their rows here when their issue comes: encoding and rounding are
written for any number of exponent and mantissa bits already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class DType:
    """An element type. ``exponent``/``mantissa`` are bits of a float; ``host`` holds its values."""

    name: str
    kind: str  # "float", "int", "uint", "bool"
    bits: int
    host: str  # NumPy dtype that holds every value exactly while interpreting
    exponent: int = 0
    mantissa: int = 0

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "uint")

    def __str__(self) -> str:
        return self.name

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next value (floats only)."""
        return float(2.0**-self.mantissa)

    def holds(self, value: float) -> bool:
        """Whether a Python number can be taken for one of this dtype (floats round it)."""
        if self.is_float:
            return True
        if not math.isfinite(value) or value != int(value):
            return False
        if self.kind == "bool":
            return value in (0, 1)
        low = 0 if self.kind == "uint" else -(2 ** (self.bits - 1))
        return bool(low <= value < low + 2**self.bits)

    def round(self, values: npt.ArrayLike) -> Array:
        """Values rounded to the nearest of this dtype, ties to even, held in ``host``."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.name == "bf16":
                return _round_mantissa(np.asarray(values), self.mantissa)
            if self.name == "f16":
                return np.asarray(values).astype(np.float16).astype(np.float32)
            return np.asarray(values).astype(self.host)


def _round_mantissa(values: Array, mantissa: int) -> Array:
    """Round float values to ``mantissa`` bits through float32's bit pattern (exponent as f32).

    Rounding a double to f32 first and then again could round twice; the bit pattern of the double
    is used while it is one, by forcing the sticky bit of the first rounding (round to odd).
    """
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.dtype == np.float64:
        narrow = values.astype(np.float32)
        bits = narrow.view(np.uint32)
        inexact = np.isfinite(narrow) & (narrow.astype(np.float64) != values)
        # round to odd: step back toward zero when we rounded away, then set the last bit
        away = inexact & (np.abs(narrow.astype(np.float64)) > np.abs(values))
        bits = np.where(away, bits - 1, bits)
        bits = np.where(inexact, bits | 1, bits).astype(np.uint32)
    else:
        bits = values.astype(np.float32).view(np.uint32)
    drop = 23 - mantissa
    half = np.uint32((1 << (drop - 1)) - 1)
    tie = (bits >> np.uint32(drop)) & np.uint32(1)
    rounded = (bits + half + tie) & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, np.uint32(0x7FC00000), rounded).astype(np.uint32).view(np.float32)


TABLE: dict[str, DType] = {
    row.name: row
    for row in (
        DType("f64", "float", 64, "float64", 11, 52),
        DType("f32", "float", 32, "float32", 8, 23),
        DType("f16", "float", 16, "float32", 5, 10),
        DType("bf16", "float", 16, "float32", 8, 7),
        DType("i64", "int", 64, "int64"),
        DType("i32", "int", 32, "int32"),
        DType("i16", "int", 16, "int16"),
        DType("i8", "int", 8, "int8"),
        DType("u8", "uint", 8, "uint8"),
        DType("bool", "bool", 8, "bool"),
    )
}

F64, F32, F16, BF16 = TABLE["f64"], TABLE["f32"], TABLE["f16"], TABLE["bf16"]
I64, I32, I8, U8, BOOL = TABLE["i64"], TABLE["i32"], TABLE["i8"], TABLE["u8"], TABLE["bool"]
