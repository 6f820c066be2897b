"""The table of element types: one row per dtype, with exact rounding to it.

Types of up to 8 bits also have codes, unsigned numbers below 2**bits, as packed weights store them
(formats.py). Those that memory cannot hold element by element live only packed (packing.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.ir import formats
from tilewright.ir.errors import SettingError, UnsupportedError

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class DType:
    """An element type. ``exponent``/``mantissa`` are bits of a float; ``host`` holds its values."""

    name: str
    kind: str  # "float", "int", "uint", "bool", "table"
    bits: int
    host: str  # NumPy dtype that holds every value exactly while interpreting
    exponent: int = 0
    mantissa: int = 0
    special: str = ""  # of a float with codes: "" numbers only, "nan", "ieee" (formats.py)
    table: tuple[float, ...] = ()  # of kind "table": what each code stands for

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
        # with one bit of exponent, 1 is no normal number
        return float(2.0 ** (int(self.exponent == 1) - self.mantissa))

    @property
    def addressable(self) -> bool:
        """Whether memory holds elements one by one; all others live packed in words."""
        return self.bits > 8 or (self.bits == 8 and self.kind in ("int", "uint", "bool"))

    def is_hosts(self, host: np.dtype[Any]) -> bool:
        """Whether NumPy's dtype has the values of this one and no others."""
        return host == self.host and self.bits == 8 * host.itemsize

    @cached_property
    def codec(self) -> formats.Codec:
        """The codes of a dtype of up to 8 bits. Raises UnsupportedError for the others."""
        if self.bits > 8 or self.kind == "bool":
            raise UnsupportedError(f"{self} has no codes of up to 8 bits; its values are stored")
        if self.kind == "table":
            return formats.table_codec(self.table)
        if self.is_int:
            return formats.integer_codec(self.bits, self.kind == "int")
        if self.bits == self.exponent + self.mantissa:  # no sign
            return formats.power_codec()
        return formats.float_codec(self.exponent, self.mantissa, self.special)

    def encode(self, values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """The codes of the nearest values, ties to even, saturating; exact for every double.

        Codes are stored bit patterns: ``uN`` the number, ``iN`` the number + 2**(N-1), floats
        sign, exponent and mantissa, tables the index. For infinities and NaN see ``Codec.encode``.
        """
        return self.codec.encode(values)

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """What codes (below 2**bits) stand for, as float32, which holds all of them exactly."""
        return self.codec.decode(codes)

    @property
    def largest(self) -> float:
        """The largest finite magnitude that a code stands for."""
        values = np.abs(self.codec.values)
        return float(values[np.isfinite(values)].max())

    def holds(self, value: float) -> bool:
        """Whether a Python number can be taken for one of this dtype (floats round it)."""
        if self.is_float or self.kind == "table":
            return True
        if not math.isfinite(value) or value != int(value):
            return False
        if self.kind == "bool":
            return value in (0, 1)
        low = 0 if self.kind == "uint" else -(2 ** (self.bits - 1))
        return bool(low <= value < low + 2**self.bits)

    def round(self, values: npt.ArrayLike) -> Array:
        """Values rounded to the nearest of this dtype, ties to even, held in ``host``.

        Integers wrap, as programs' do; floats and tables with codes saturate, as ``encode`` does.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_int and self.bits < 8:
                return self._wrapped(np.asarray(values).astype(np.int64))
            if not self.addressable:
                return self.decode(self.encode(values))
            if self.name == "bf16":
                return _round_mantissa(np.asarray(values), self.mantissa)
            if self.name == "f16":
                return np.asarray(values).astype(np.float16).astype(np.float32)
            return np.asarray(values).astype(self.host)

    def _wrapped(self, values: npt.NDArray[np.int64]) -> Array:
        """Integers modulo 2**bits."""
        low = 0 if self.kind == "uint" else 1 << self.bits - 1
        return (((values + low) & ((1 << self.bits) - 1)) - low).astype(self.host)


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


SPECIAL = {"f8e4m3": "nan", "f8e5m2": "ieee"}  # OCP FP8; all others hold numbers only


def _low_bit_rows() -> list[DType]:
    """``u1`` to ``u7``, ``i2`` to ``i7``, and every float of 3 to 8 bits: ``fKeXmY`` has a sign, X
    bits of exponent (bias 2**(X-1) - 1) and Y of mantissa, K in all, and keeps denormals."""
    unsigned = [DType(f"u{n}", "uint", n, "uint8") for n in range(1, 8)]
    signed = [DType(f"i{n}", "int", n, "int8") for n in range(2, 8)]
    shapes = [(n, e, n - 1 - e) for n in range(3, 9) for e in range(1, n)]
    named = [(f"f{n}e{e}m{m}", n, e, m) for n, e, m in shapes]
    floats = [DType(s, "float", n, "float32", e, m, SPECIAL.get(s, "")) for s, n, e, m in named]
    return [*unsigned, *signed, *floats]


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
        *_low_bit_rows(),
        DType("e8m0", "float", 8, "float32", 8, 0),
        DType("nf4", "table", 4, "float32", table=formats.NF4),
    )
}


def table_dtype(name: str, values: Sequence[float]) -> DType:
    """A new element type whose code c stands for ``values[c]``, known by its name from now on.

    2, 4, 8, … or 256 finite values in any order (repeat one to fill up), taken as float32.
    The same name with the same values gives the same dtype. Raises SettingError.
    """
    with np.errstate(over="ignore"):
        taken = tuple(float(v) for v in np.asarray(values, np.float32).reshape(-1))
    count = len(taken)
    if not 2 <= count <= 256 or count & (count - 1):
        raise SettingError(
            f"table_dtype({name!r}): {count} values; a table has 2, 4, 8, 16, 32, 64, 128 or 256 "
            "(repeat a value to fill it up)"
        )
    if not all(map(math.isfinite, taken)):
        raise SettingError(f"table_dtype({name!r}): every value must be a finite float32")
    if not name.isidentifier() or not name.isascii():
        raise SettingError(f"table_dtype: {name!r} is no name; use letters, digits and _")
    made = DType(name, "table", count.bit_length() - 1, "float32", table=taken)
    known = TABLE.setdefault(name, made)
    if known != made:
        raise SettingError(f"table_dtype: {name!r} is a dtype already, with other values")
    return known


F64, F32, F16, BF16 = TABLE["f64"], TABLE["f32"], TABLE["f16"], TABLE["bf16"]
I64, I32, I8, U8, BOOL = TABLE["i64"], TABLE["i32"], TABLE["i8"], TABLE["u8"], TABLE["bool"]
