"""Pointwise arithmetic and casts."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import Handler, Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.errors import UnsupportedError


def binary(e: Emitter, cls: type[Op], lhs: Operand, rhs: Operand, dtype: DType) -> Value:
    """An operation with a result of ``dtype``; numbers keep the precision of the arithmetic."""
    wide = arithmetic_dtype(dtype)
    return e.compute(cls, as_value(e, lhs, wide), as_value(e, rhs, wide), dtype=dtype)


@handles("add", Kind.POINTWISE, [torch.add, operator.add], ["add", "__add__", "__radd__"])
def add(e: Emitter, input: Operand, other: Operand, *, alpha: float = 1) -> Value:
    """input + alpha * other"""
    if alpha != 1:
        other = binary(e, m.Mul, other, alpha, e.dtype)
    return binary(e, m.Add, input, other, e.dtype)


@handles("sub", Kind.POINTWISE, [torch.sub, torch.subtract, operator.sub], ["sub", "__sub__"])
def sub(e: Emitter, input: Operand, other: Operand, *, alpha: float = 1) -> Value:
    """input - alpha * other"""
    if alpha != 1:
        other = binary(e, m.Mul, other, alpha, e.dtype)
    return binary(e, m.Sub, input, other, e.dtype)


@handles("rsub", Kind.POINTWISE, [torch.rsub], ["rsub", "__rsub__"])
def rsub(e: Emitter, input: Operand, other: Operand) -> Value:
    """other - input"""
    return binary(e, m.Sub, other, input, e.dtype)


@handles("mul", Kind.POINTWISE, [torch.mul, torch.multiply, operator.mul], ["mul", "__mul__"])
def mul(e: Emitter, input: Operand, other: Operand) -> Value:
    """input * other; of booleans both"""
    return binary(e, m.And if e.dtype == BOOL else m.Mul, input, other, e.dtype)


@handles(
    "div",
    Kind.POINTWISE,
    [torch.div, torch.true_divide, torch.divide, operator.truediv],
    ["div", "true_divide", "__truediv__"],
)
def div(e: Emitter, input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Value:
    """input / other in floats; ``rounding_mode="floor"``: // of integers"""
    if rounding_mode == "floor":
        return floor_divide(e, input, other)
    if rounding_mode is not None:
        raise UnsupportedError(f"division with rounding_mode={rounding_mode!r}; only 'floor'")
    return binary(e, m.Div, input, other, e.dtype)


@handles("floor_divide", Kind.POINTWISE, [torch.floor_divide, operator.floordiv], ["floor_divide"])
def floor_divide(e: Emitter, input: Operand, other: Operand) -> Value:
    """input // other of integers, rounded down"""
    if not e.dtype.is_int:
        raise UnsupportedError("// of floats; only of integers")
    return binary(e, m.Div, input, other, e.dtype)


@handles("remainder", Kind.POINTWISE, [torch.remainder, operator.mod], ["remainder"])
def remainder(e: Emitter, input: Operand, other: Operand) -> Value:
    """input % other of integers, with the sign of other"""
    if not e.dtype.is_int:
        raise UnsupportedError("% of floats; only of integers")
    return binary(e, m.Mod, input, other, e.dtype)


@handles("maximum", Kind.POINTWISE, [torch.maximum], ["maximum"])
def maximum(e: Emitter, input: Operand, other: Operand) -> Value:
    """The larger, NaN if either is"""
    return binary(e, m.Max, input, other, e.dtype)


@handles("minimum", Kind.POINTWISE, [torch.minimum], ["minimum"])
def minimum(e: Emitter, input: Operand, other: Operand) -> Value:
    """The smaller, NaN if either is"""
    return binary(e, m.Min, input, other, e.dtype)


@handles(
    "clamp",
    Kind.POINTWISE,
    [torch.clamp, torch.clip, torch.clamp_min],
    ["clamp", "clip", "clamp_min"],
)
def clamp(
    e: Emitter, input: Operand, min: Operand | None = None, max: Operand | None = None
) -> Value:
    """min(max(input, min), max)"""
    value = as_value(e, input, e.dtype)
    if min is not None:
        value = binary(e, m.Max, value, min, e.dtype)
    return value if max is None else binary(e, m.Min, value, max, e.dtype)


@handles("clamp_max", Kind.POINTWISE, [torch.clamp_max], ["clamp_max"])
def clamp_max(e: Emitter, input: Operand, max: Operand) -> Value:
    """min(input, max)"""
    return binary(e, m.Min, input, max, e.dtype)


@handles("pow", Kind.POINTWISE, [torch.pow, operator.pow], ["pow", "__pow__"])
def power(e: Emitter, input: Operand, exponent: Operand) -> Value:
    """Small constant exponents by multiplication and roots, others by math.pow"""
    dtype = e.dtype
    if exponent in (2, 3):
        square = binary(e, m.Mul, input, input, dtype)
        return square if exponent == 2 else binary(e, m.Mul, square, input, dtype)
    if dtype.is_float and exponent in (0.5, -0.5) and isinstance(input, Value):
        return e.compute(m.Sqrt if exponent == 0.5 else m.Rsqrt, input, dtype=dtype)
    if dtype.is_float:
        return binary(e, m.Pow, input, exponent, dtype)
    raise UnsupportedError("powers of integers other than squares and cubes")


UNARY: dict[str, type[Op]] = {
    "neg": m.Neg,
    "exp": m.Exp,
    "exp2": m.Exp2,
    "log": m.Log,
    "log2": m.Log2,
    "tanh": m.Tanh,
    "erf": m.Erf,
    "sigmoid": m.Sigmoid,
    "sqrt": m.Sqrt,
    "rsqrt": m.Rsqrt,
    "abs": m.Abs,
}
EXTRA_FUNCTIONS: dict[str, list[Any]] = {
    "neg": [operator.neg, torch.negative],
    "abs": [operator.abs, torch.absolute],
    "sigmoid": [F.sigmoid],
    "tanh": [F.tanh],
    "erf": [torch.special.erf],
}


def _register_unary(name: str, cls: type[Op]) -> Handler:
    functions = [getattr(torch, name), *EXTRA_FUNCTIONS.get(name, [])]

    @handles(name, Kind.POINTWISE, functions, [name])
    def unary(e: Emitter, input: Value) -> Value:
        return e.compute(cls, input, dtype=e.dtype)

    return unary


for _name, _cls in UNARY.items():
    _register_unary(_name, _cls)


@handles("square", Kind.POINTWISE, [torch.square], ["square"])
def square(e: Emitter, input: Value) -> Value:
    """input * input"""
    return binary(e, m.Mul, input, input, e.dtype)


@handles("reciprocal", Kind.POINTWISE, [torch.reciprocal], ["reciprocal"])
def reciprocal(e: Emitter, input: Value) -> Value:
    """1 / input"""
    return binary(e, m.Div, 1.0, input, e.dtype)


@handles(
    "cast",
    Kind.POINTWISE,
    [],
    ["to", "type", "type_as", "float", "half", "bfloat16", "double", "int", "long", "bool"],
)
def cast(e: Emitter, input: Value, *_target: object, **_options: object) -> Value:
    """A conversion to the dtype that torch says the result has; moving devices is not one."""
    return e.cast(input, e.dtype, asked=True)
