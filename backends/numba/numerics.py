"""What generated code calls: exact conversions of 16-bit floats, and arithmetic where Python's or
Numba's own differs from the meaning of an op. Importing this module needs Numba.

A 16-bit float lies in memory as ``uint16`` bits and is held in a variable as the f32 of that value.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from tilewright.backends.float_mode import IEEE
from tilewright.backends.numba.build import intrinsic, jit

# ---- 16-bit floats


@jit
def bf16_to_f32(bits: np.uint16) -> np.float32:
    """The value of bf16 bits: they are the upper half of f32's."""
    return np.uint32(np.int64(bits) << 16).view(np.float32)


@jit
def f32_to_bf16(x: np.float32) -> np.uint16:
    """Bits of the nearest bf16, ties to even; a NaN keeps its sign and what fits of its payload."""
    bits = np.int64(np.float32(x).view(np.uint32))
    upper = bits >> 16
    if np.isnan(x):
        return np.uint16(upper if upper & 0x7F else upper | 0x40)
    return np.uint16((bits + 0x7FFF + (upper & 1)) >> 16)


@jit
def f16_to_f32(bits: np.uint16) -> np.float32:
    """The value of f16 bits."""
    whole = np.int64(bits)
    sign, magnitude = (whole & 0x8000) << 16, whole & 0x7FFF
    if magnitude >= 0x7C00:  # infinite or NaN: f32's exponent is all ones too
        return np.uint32(sign | 0x7F800000 | (magnitude & 0x3FF) << 13).view(np.float32)
    if magnitude < 0x400:  # subnormal: a multiple of 2**-24
        small = np.float32(magnitude) * np.float32(2.0**-24)
        return -small if sign else small
    return np.uint32(sign | (magnitude << 13) + ((127 - 15) << 23)).view(np.float32)


@jit
def f32_to_f16(x: np.float32) -> np.uint16:
    """Bits of the nearest f16, ties to even; a NaN keeps its sign and what fits of its payload."""
    bits = np.int64(np.float32(x).view(np.uint32))
    sign, magnitude = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        payload = magnitude >> 13 & 0x3FF
        return np.uint16(sign | 0x7C00 | (payload if payload else 0x200))
    if magnitude >= 0x477FF000:  # from 65520 on, infinity is nearest
        return np.uint16(sign | 0x7C00)
    if magnitude >= 0x38800000:  # normal: round the mantissa, take the difference of the biases off
        rounded = magnitude + 0xFFF + (magnitude >> 13 & 1)
        return np.uint16(sign | (rounded >> 13) - ((127 - 15) << 10))
    # subnormal: in [0.5, 1) the last bit of f32 is worth 2**-24, as here, so the sum rounds for us
    shifted = np.uint32(magnitude).view(np.float32) + np.float32(0.5)
    return np.uint16(sign | np.int64(np.float32(shifted).view(np.uint32)) - 0x3F000000)


@jit
def round_bf16(x: np.float32) -> np.float32:
    """The nearest bf16 value, ties to even."""
    return bf16_to_f32(f32_to_bf16(x))


@jit
def round_f16(x: np.float32) -> np.float32:
    """The nearest f16 value, ties to even."""
    return f16_to_f32(f32_to_f16(x))


@jit
def narrowed(x: np.float64) -> np.float32:
    """An f64 as f32, rounded to odd: rounding the result again, to 16 bits, gives what rounding x
    once would (a plain conversion would round twice)."""
    near = np.float32(x)
    if near == x or near - near != 0:  # exact, infinite (too large for 16 bits too) or NaN
        return near
    bits = np.int64(np.float32(near).view(np.uint32))
    if abs(np.float64(near)) > abs(x):
        bits -= 1
    return np.uint32(bits | 1).view(np.float32)


# ---- bits


@jit
def f32_bits(x: np.float32) -> np.int64:
    """The bits of an f32 as a number that is not negative."""
    return np.int64(np.float32(x).view(np.uint32))


@jit
def bits_f32(bits: np.int64) -> np.float32:
    """The f32 whose bits are the lowest 32 of an integer."""
    return np.uint32(bits).view(np.float32)


@jit
def f64_bits(x: np.float64) -> np.int64:
    """The bits of an f64."""
    return np.float64(x).view(np.int64)


@jit
def bits_f64(bits: np.int64) -> np.float64:
    """The f64 of some bits."""
    return np.int64(bits).view(np.float64)


@jit
def shift_right_i64(x: np.int64, distance: np.int64) -> np.int64:
    """The bits moved down; 0 follows."""
    return np.int64(np.uint64(x) >> np.uint64(distance))


# ---- arithmetic


@jit
def floor_div(a: np.int64, b: np.int64) -> np.int64:
    """a / b rounded down, 0 for b = 0. The smallest integer divided by -1 is itself."""
    numerator, divisor = np.int64(a), np.int64(b)
    if divisor == 0:
        return np.int64(0)
    if divisor == -1:  # the machine's division would trap on the smallest integer
        return -numerator
    return numerator // divisor


@jit
def floor_mod(a: np.int64, b: np.int64) -> np.int64:
    """a - floor_div(a, b) * b, which is a for b = 0."""
    return np.int64(a) - floor_div(a, b) * np.int64(b)


@jit
def maximum(a: np.float64, b: np.float64) -> np.float64:
    """The larger; NaN if either is."""
    return a if a > b or np.isnan(a) else b


@jit
def minimum(a: np.float64, b: np.float64) -> np.float64:
    """The smaller; NaN if either is."""
    return a if a < b or np.isnan(a) else b


@jit
def first_larger(a: np.float32, b: np.float32) -> np.float32:
    """a if a > b else b: of NaN and another number the second."""
    return a if a > b else b


@jit
def first_smaller(a: np.float32, b: np.float32) -> np.float32:
    """a if a < b else b: of NaN and another number the second."""
    return a if a < b else b


@jit
def largest_number(a: np.float64, b: np.float64) -> np.float64:
    """The larger; the other one if one is NaN."""
    return a if a > b or np.isnan(b) else b


@jit
def smallest_number(a: np.float64, b: np.float64) -> np.float64:
    """The smaller; the other one if one is NaN."""
    return a if a < b or np.isnan(b) else b


@jit
def fraction_f32(x: np.float32) -> np.float32:
    """x - floor(x); 0 for infinities."""
    return np.float32(x - np.floor(x)) if abs(x) != math.inf else np.float32(0)


@jit
def fraction_down(x: np.float32) -> np.float32:
    """x - floor(x) rounded down; 0 for infinities."""
    if abs(x) == math.inf:
        return np.float32(0)
    floor = np.float32(np.floor(x))
    near = np.float32(x - floor)
    if np.float32(near + floor) > x:  # near + floor is exact where near is not
        return bits_f32(f32_bits(near) - 1)
    return near


@jit
def fraction_f64(x: float) -> float:
    """x - floor(x); 0 for infinities."""
    return float(x - np.floor(x)) if abs(x) != math.inf else 0.0


@jit
def scale2_f32(x: np.float32, n: np.float32) -> np.float32:
    """x * 2**floor(n), rounded once: the product is exact in f64."""
    if n - n != 0:  # infinite or NaN
        return np.float32(x * np.exp2(n))
    bounded = max(min(n, np.float32(300)), np.float32(-300))  # beyond, all f32 overflow or vanish
    power = np.int64((np.int64(np.floor(bounded)) + 1023) << 52).view(np.float64)
    return np.float32(np.float64(x) * power)


@jit
def scale2_f64(x: float, n: float) -> float:
    """x * 2**floor(n), rounded once."""
    if n - n != 0:
        return float(x * np.exp2(n))
    return math.ldexp(x, int(np.floor(max(min(n, 2200.0), -2200.0))))


@jit
def truncated(x: np.float64) -> np.int64:
    """A float as i64, toward zero; the smallest i64 for NaN and what does not fit."""
    if -9223372036854775808.0 <= x < 9223372036854775808.0:
        return np.int64(x)
    return np.int64(-9223372036854775808)


# ---- one rounding


@intrinsic
def fused(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of f32, rounded once: LLVM's own operation, an instruction or a call of fmaf."""

    def write(context: Any, builder: Any, signature: Any, inputs: Any) -> Any:
        return builder.fma(*inputs)

    f32 = importlib.import_module("numba").types.float32
    return f32(f32, f32, f32), write


# ---- the mode that floats are computed in (x86)


def _mode(builder: Any, name: str, place: Any) -> None:
    """Calls ldmxcsr or stmxcsr."""
    ir = importlib.import_module("llvmlite.ir")
    form = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    cgutils = importlib.import_module("numba.core.cgutils")
    function = cgutils.get_or_insert_function(builder.module, form, f"llvm.x86.sse.{name}")
    builder.call(function, [builder.bitcast(place, form.args[0])])


@intrinsic
def ieee_mode(typing: Any) -> Any:
    """Sets that mode for this thread; what it was."""
    types = importlib.import_module("numba").types

    def write(context: Any, builder: Any, signature: Any, inputs: Any) -> Any:
        ir = importlib.import_module("llvmlite.ir")
        cgutils = importlib.import_module("numba.core.cgutils")
        place = cgutils.alloca_once(builder, ir.IntType(32))
        _mode(builder, "stmxcsr", place)
        before = builder.load(place)
        builder.store(ir.Constant(ir.IntType(32), IEEE), place)
        _mode(builder, "ldmxcsr", place)
        return before

    return types.int32(), write


@intrinsic
def mode_before(typing: Any, before: Any) -> Any:
    """Sets this thread's mode to what ``ieee_mode`` found."""
    types = importlib.import_module("numba").types

    def write(context: Any, builder: Any, signature: Any, inputs: Any) -> Any:
        cgutils = importlib.import_module("numba.core.cgutils")
        place = cgutils.alloca_once(builder, inputs[0].type)
        builder.store(inputs[0], place)
        _mode(builder, "ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.int32), write
