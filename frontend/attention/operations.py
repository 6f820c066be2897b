"""Operations of score and mask functions beyond the op map, which serves whole regions.

Handlers as in the op map; the emitter's shape is (): all values are numbers to the user's function.
"""

from __future__ import annotations

import math

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import Handler
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError


def exclusive_or(e: Emitter, input: Operand, other: Operand) -> Value:
    """a != b of booleans"""
    if e.dtype != BOOL:
        raise UnsupportedError("^ of integers; only of booleans")
    return e.compare(as_value(e, input, BOOL), as_value(e, other, BOOL), "ne")


def logical_xor(e: Emitter, input: Operand, other: Operand) -> Value:
    return e.compare(as_value(e, input, BOOL), as_value(e, other, BOOL), "ne")


def bitwise_and(e: Emitter, input: Operand, other: Operand) -> Value:
    """Both; of an integer and 2**k - 1 the remainder by 2**k (floor division: of negatives too)"""
    if e.dtype == BOOL:
        return e.op(m.And, as_value(e, input, BOOL), as_value(e, other, BOOL))
    number, value = (input, other) if isinstance(input, int) else (other, input)
    if not isinstance(number, int) or number < 0 or number & (number + 1):
        raise UnsupportedError("& of integers; only with a constant 2**k - 1 (write %, //)")
    return binary(e, m.Mod, value, number + 1, e.dtype)


def shift_right(e: Emitter, input: Operand, other: Operand) -> Value:
    """Division by a power of two, rounded down"""
    return binary(e, m.Div, input, _power(e, other), e.dtype)


def shift_left(e: Emitter, input: Operand, other: Operand) -> Value:
    """Multiplication by a power of two"""
    return binary(e, m.Mul, input, _power(e, other), e.dtype)


def _power(e: Emitter, exponent: Operand) -> int:
    if not isinstance(exponent, int) or not 0 <= exponent < e.dtype.bits - 1:
        raise UnsupportedError("a shift by something else than a constant; write * or //")
    return int(2**exponent)


def floor(e: Emitter, input: Value) -> Value:
    """x - fraction(x)"""
    if not e.dtype.is_float:
        return input
    wide = e.cast(input, arithmetic_dtype(e.dtype))
    return e.cast(e.op(m.Sub, wide, e.op(m.Fraction, wide)), e.dtype)


def ceil(e: Emitter, input: Value) -> Value:
    """-floor(-x)"""
    return input if not e.dtype.is_float else e.op(m.Neg, floor(e, e.op(m.Neg, input)))


def round_(e: Emitter, input: Value, *, decimals: int = 0) -> Value:
    """To the nearest integer, ties to even"""
    if decimals:
        raise UnsupportedError("round to decimals; only to integers")
    return e.compute(m.Round, input, dtype=e.dtype) if e.dtype.is_float else input


def div(e: Emitter, input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Value:
    """a / b, rounded down for "floor"."""
    if rounding_mode not in (None, "floor"):
        raise UnsupportedError(f"division with rounding_mode={rounding_mode!r}; only 'floor'")
    quotient = binary(e, m.Div, input, other, e.dtype)
    rounds = rounding_mode == "floor" and e.dtype.is_float
    return floor(e, quotient) if rounds else quotient


def floor_divide(e: Emitter, input: Operand, other: Operand) -> Value:
    """a // b, rounded down"""
    return div(e, input, other, rounding_mode="floor")


def remainder(e: Emitter, input: Operand, other: Operand) -> Value:
    """a % b with the sign of b"""
    if e.dtype.is_int:
        return binary(e, m.Mod, input, other, e.dtype)
    whole = floor(e, binary(e, m.Div, input, other, e.dtype))
    return binary(e, m.Sub, input, binary(e, m.Mul, whole, other, e.dtype), e.dtype)


def sign(e: Emitter, input: Value) -> Value:
    """(x > 0) - (x < 0)"""
    zero = e.const(0, tensor_type(input).dtype)
    above, below = e.compare(input, zero, "gt"), e.compare(input, zero, "lt")
    return e.op(m.Sub, e.cast(above, e.dtype), e.cast(below, e.dtype))


def isinf(e: Emitter, input: Value) -> Value:
    """|x| == inf"""
    dtype = tensor_type(input).dtype
    if not dtype.is_float:
        return e.const(False, BOOL)
    return e.compare(e.op(m.Abs, input), e.const(math.inf, dtype), "eq")


def log1p(e: Emitter, input: Operand) -> Value:
    """log(1 + x)"""
    return e.compute(m.Log, binary(e, m.Add, input, 1.0, e.dtype), dtype=e.dtype)


def expm1(e: Emitter, input: Value) -> Value:
    """exp(x) - 1"""
    return binary(e, m.Sub, e.compute(m.Exp, input, dtype=e.dtype), 1.0, e.dtype)


def softplus(e: Emitter, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """log(1 + exp(beta x)) / beta, x where beta x is above the threshold"""
    scaled = binary(e, m.Mul, input, beta, e.dtype)
    soft = binary(e, m.Div, log1p(e, e.compute(m.Exp, scaled, dtype=e.dtype)), beta, e.dtype)
    above = e.compare(scaled, e.const(threshold, tensor_type(scaled).dtype), "gt")
    return e.select(above, input, soft, e.dtype)


def identity(e: Emitter, input: Value, *_options: object, **_more: object) -> Value:
    """What changes neither the number nor its dtype"""
    return input


def truth(e: Emitter, input: Value) -> Value:
    """any and all of one number"""
    return e.cast(input, BOOL)


OPERATIONS: dict[str, Handler] = {
    "bitwise_xor": exclusive_or,
    "logical_xor": logical_xor,
    "bitwise_and": bitwise_and,
    "bitwise_right_shift": shift_right,
    "bitwise_left_shift": shift_left,
    "floor": floor,
    "ceil": ceil,
    "round": round_,
    "div": div,
    "divide": div,
    "true_divide": div,
    "floor_divide": floor_divide,
    "remainder": remainder,
    "sign": sign,
    "isinf": isinf,
    "log1p": log1p,
    "expm1": expm1,
    "softplus": softplus,
    "any": truth,
    "all": truth,
    "contiguous": identity,
    "clone": identity,
    "detach": identity,
    "view": identity,
    "reshape": identity,
    "squeeze": identity,
    "expand": identity,
    "cpu": identity,
    "positive": identity,
}

# name of a dunder or alias -> (the operation's name, operands exchanged)
ALIASES: dict[str, tuple[str, bool]] = {
    "__radd__": ("add", True),
    "__rsub__": ("sub", True),
    "__rmul__": ("mul", True),
    "__rtruediv__": ("div", True),
    "__rdiv__": ("div", True),
    "__truediv__": ("div", False),
    "__div__": ("div", False),
    "__floordiv__": ("floor_divide", False),
    "__rfloordiv__": ("floor_divide", True),
    "__mod__": ("remainder", False),
    "__rmod__": ("remainder", True),
    "__rpow__": ("pow", True),
    "__and__": ("bitwise_and", False),
    "__rand__": ("bitwise_and", True),
    "__ror__": ("bitwise_or", True),
    "__xor__": ("bitwise_xor", False),
    "__rxor__": ("bitwise_xor", True),
    "__lshift__": ("bitwise_left_shift", False),
    "__rshift__": ("bitwise_right_shift", False),
    "__abs__": ("abs", False),
    "__neg__": ("neg", False),
    "__pos__": ("positive", False),
    "absolute": ("abs", False),
    "negative": ("neg", False),
    "less": ("lt", False),
    "less_equal": ("le", False),
    "greater": ("gt", False),
    "greater_equal": ("ge", False),
    "not_equal": ("ne", False),
    "multiply": ("mul", False),
    "subtract": ("sub", False),
    "masked_fill_": ("masked_fill", False),
    "clip": ("clamp", False),
}
