"""f16 and f32 into each other by integer arithmetic, for targets without such instructions.

Elsewhere LLVM would call a function of its compiler's library for every element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.backends.mlir.pointwise import Scalars

_MANTISSA = 23 - 10  # bits that f32's mantissa has more
_REBIAS = 127 - 15  # what f32's exponents count more
_SIGN, _SIZE = 0x8000, 0x7FFF  # of f16's bits
_INFINITE = 0x7C00
_NAN = 0x7E00
_SMALLEST = (127 - 14) << 23  # f32's bits of f16's smallest normal number
_BEYOND = (16 + 127) << 23  # f32's bits of 2**16, which is infinite in f16
_HALF = 126 << 23  # f32's bits of 0.5, whose last place is that of f16's denormals


def widen_f16(s: Scalars, x: str) -> str:
    """f16 to f32, exact: its bits as those of a number that is 2**112 too small, denormals
    included; infinities and NaN get f32's highest exponent."""
    bits = s.convert("arith.extui", s.convert("arith.bitcast", x, "f16", "i16"), "i16", "i32")
    sign = _shifted(s, "arith.shli", _masked(s, bits, _SIGN), 16)
    size = _masked(s, bits, _SIZE)
    moved = _shifted(s, "arith.shli", size, _MANTISSA)
    small = s.convert("arith.bitcast", moved, "i32", "f32")
    scaled = s.binary("arith.mulf", small, s.number(2.0**_REBIAS, "f32"), "f32")
    finite = s.convert("arith.bitcast", scaled, "f32", "i32")
    highest = s.binary("arith.ori", moved, s.number(255 << 23, "i32"), "i32")
    special = _compared(s, "sge", size, _INFINITE)
    number = s.choose(special, highest, finite, s.shaped("i32"))
    return s.convert("arith.bitcast", s.binary("arith.ori", number, sign, "i32"), "i32", "f32")


def narrow_f16(s: Scalars, x: str) -> str:
    """f32 to f16, nearest even: denormals by an addition that rounds at their last place."""
    bits = s.convert("arith.bitcast", x, "f32", "i32")
    sign = _masked(s, _shifted(s, "arith.shrui", bits, 16), _SIGN)
    size = _masked(s, bits, 0x7FFFFFFF)
    odd = _masked(s, _shifted(s, "arith.shrui", size, _MANTISSA), 1)
    offset = (1 << _MANTISSA - 1) - 1 - (_REBIAS << 23)
    rounded = s.binary(
        "arith.addi", s.binary("arith.addi", size, odd, "i32"), _i32(s, offset), "i32"
    )
    normal = _shifted(s, "arith.shrui", rounded, _MANTISSA)
    number = s.convert("arith.bitcast", size, "i32", "f32")
    placed = s.binary("arith.addf", number, s.number(0.5, "f32"), "f32")
    places = s.convert("arith.bitcast", placed, "f32", "i32")
    denormal = s.binary("arith.subi", places, _i32(s, _HALF), "i32")
    held = s.shaped("i32")
    found = s.choose(_compared(s, "slt", size, _SMALLEST), denormal, normal, held)
    found = s.choose(_compared(s, "sge", size, _BEYOND), _i32(s, _INFINITE), found, held)
    found = s.choose(_compared(s, "sgt", size, 255 << 23), _i32(s, _NAN), found, held)
    whole = s.convert("arith.trunci", s.binary("arith.ori", found, sign, "i32"), "i32", "i16")
    return s.convert("arith.bitcast", whole, "i16", "f16")


def _i32(s: Scalars, value: int) -> str:
    return s.number(value, "i32")


def _masked(s: Scalars, x: str, mask: int) -> str:
    return s.binary("arith.andi", x, _i32(s, mask), "i32")


def _shifted(s: Scalars, name: str, x: str, places: int) -> str:
    return s.binary(name, x, _i32(s, places), "i32")


def _compared(s: Scalars, relation: str, x: str, value: int) -> str:
    return s.text.op(f"arith.cmpi {relation}, {x}, {_i32(s, value)} : {s.shaped('i32')}")
