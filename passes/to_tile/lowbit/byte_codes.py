"""Codes as unsigned bytes for 8-bit dot products: the code itself, or a byte from a table.

A float format whose values are whole multiples of one number, few enough apart for a byte, is an
integer format in disguise: value = unit * (byte - offset). Products of such bytes are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.ir.core import Value
from tilewright.ir.dtypes import DType
from tilewright.ir.ops_lowbit import LookupBytes, decoded
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder

SIGN = 128


def byte_offset(bits: int, signed_bytes: bool) -> int:
    """What bytes of ``bits`` bits are counted from: with ``signed_bytes`` (ir/target.py) those of
    eight bits from 128."""
    return SIGN if signed_bytes and bits == 8 else 0


@dataclass(frozen=True)
class ByteCodes:
    """``table`` gives the byte of a code (empty: the code itself), of ``bits`` bits; a value is
    ``unit * (byte - offset)``."""

    table: tuple[int, ...]
    bits: int
    offset: int
    unit: float

    def emit(self, b: TileBuilder, codes: Value) -> Value:
        """A word of four codes as four bytes."""
        if not self.table:
            return codes
        return b(LookupBytes, codes, values=self.table, hint="bytes")


@lru_cache(maxsize=256)
def byte_codes(dtype: DType, target: Target) -> ByteCodes | None:
    """How a dtype's codes become bytes on a target; None if they do not fit."""
    if dtype.is_int:
        return ByteCodes((), dtype.bits, 0, 1.0)
    values = decoded(np.arange(1 << dtype.bits, dtype=np.uint8), dtype)
    if not np.isfinite(values).all() or 1 << dtype.bits > target.byte_table:
        return None
    sizes = np.abs(values[values != 0])
    unit = float(sizes.min()) if sizes.size else 1.0
    steps = values / unit
    if (steps != np.rint(steps)).any() or steps.max() - steps.min() > 255:
        return None
    offset = int(-steps.min())
    table = tuple(int(v) + offset for v in steps)
    return ByteCodes(table, max(table).bit_length(), offset, unit)
