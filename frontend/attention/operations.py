"""Operations of score and mask functions beyond the op map, which serves whole regions.

Handlers as in the op map; the emitter's shape is (): all values are numbers to the user's function.
"""

from __future__ import annotations

from tilewright.frontend.op_map.elementary import floor
from tilewright.frontend.op_map.emitter import Emitter
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.promotion import Operand
from tilewright.frontend.op_map.registry import Handler
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError


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


def identity(e: Emitter, input: Value, *_options: object, **_more: object) -> Value:
    """What changes neither the number nor its dtype"""
    return input


def truth(e: Emitter, input: Value) -> Value:
    """any and all of one number"""
    return e.cast(input, BOOL)


OPERATIONS: dict[str, Handler] = {
    "div": div,
    "divide": div,
    "true_divide": div,
    "floor_divide": floor_divide,
    "remainder": remainder,
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
