"""Rows in f16 for products with codes of 8 bits.

A byte becomes an f16 in half an operation (its bits below those of 1024 are a number larger by
that), a bf16 in two and a half: that has 7 bits there. So bf16 rows are divided by a power of two
each, after which their largest number lies from 1 to 4, and the product is multiplied by it. f16
has three bits more; only what is 2^14 times smaller than a row's largest number has fewer.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F16, F32, I32
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.emitter import TileBuilder

_EXPONENT = 0x7F800000  # the bits of an f32 that are its power of two
_LEAST, _MOST = 1 << 23, 253 << 23  # 2^-126, 2^126: their reciprocals are normal numbers
_RECIPROCAL = 254 << 23  # less a power's bits: those of one divided by it


def in_f16(b: TileBuilder, rows: Value) -> tuple[Value, Value]:
    """Rows [n, k] in f16, and the power of two [n, 1], in f32, that each was divided by."""
    wide = b(m.Cast, rows, dtype=F32, hint=rows.hint)
    largest = b(t.Reduce, b(m.Abs, wide, hint="size"), kind="max", dim=1, hint="largest")
    assert isinstance(largest.type, RegisterType)
    layout = largest.type.layout
    bits = b(View, largest, dtype=I32, layout=layout, hint="bits")
    bits = b(m.BitAnd, bits, b.number(_EXPONENT, I32), hint="bits")
    bits = b(m.Min, b(m.Max, bits, b.number(_LEAST, I32)), b.number(_MOST, I32), hint="bits")
    power = b(View, bits, dtype=F32, layout=layout, hint="power")
    less = b(m.Sub, b.number(_RECIPROCAL, I32), bits, hint="bits")
    narrow = b(m.Mul, wide, b(View, less, dtype=F32, layout=layout, hint="power"), hint=rows.hint)
    return b(m.Cast, narrow, dtype=F16, hint=rows.hint), power
