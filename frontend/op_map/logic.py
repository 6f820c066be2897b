"""Comparisons, logic and selection: what masks are made of."""

from __future__ import annotations

import operator
from typing import Any

import torch

from tilewright.frontend.op_map.emitter import ONE, Emitter, tensor_type
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.promotion import Operand, as_value, promoted
from tilewright.frontend.op_map.registry import Handler, Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import BOOL
from tilewright.ir.errors import UnsupportedError

RELATIONS: dict[str, list[Any]] = {
    "lt": [torch.lt, torch.less, operator.lt],
    "le": [torch.le, torch.less_equal, operator.le],
    "gt": [torch.gt, torch.greater, operator.gt],
    "ge": [torch.ge, torch.greater_equal, operator.ge],
    "eq": [torch.eq, operator.eq],
    "ne": [torch.ne, torch.not_equal, operator.ne],
}


def _register_relation(relation: str, functions: list[Any]) -> Handler:
    @handles(relation, Kind.POINTWISE, functions, [relation, f"__{relation}__"])
    def compare(e: Emitter, input: Operand, other: Operand) -> Value:
        dtype = promoted(input, other)
        return e.compare(as_value(e, input, dtype), as_value(e, other, dtype), relation)

    return compare


for _relation, _functions in RELATIONS.items():
    _register_relation(_relation, _functions)


@handles("isnan", Kind.POINTWISE, [torch.isnan], ["isnan"])
def isnan(e: Emitter, input: Value) -> Value:
    """input != input"""
    return e.compare(input, input, "ne")


def _logical(e: Emitter, cls: type[Op], *operands: Operand) -> Value:
    return e.compute(cls, *(as_value(e, x, BOOL) for x in operands), dtype=BOOL)


def _of_booleans(e: Emitter, sign: str) -> None:
    if e.dtype != BOOL:
        raise UnsupportedError(f"{sign} of integers; only of booleans")


@handles("logical_and", Kind.POINTWISE, [torch.logical_and], ["logical_and"])
def logical_and(e: Emitter, input: Operand, other: Operand) -> Value:
    return _logical(e, m.And, input, other)


@handles("logical_or", Kind.POINTWISE, [torch.logical_or], ["logical_or"])
def logical_or(e: Emitter, input: Operand, other: Operand) -> Value:
    return _logical(e, m.Or, input, other)


@handles("logical_not", Kind.POINTWISE, [torch.logical_not], ["logical_not"])
def logical_not(e: Emitter, input: Operand) -> Value:
    return _logical(e, m.Not, input)


@handles("logical_xor", Kind.POINTWISE, [torch.logical_xor], ["logical_xor"])
def logical_xor(e: Emitter, input: Operand, other: Operand) -> Value:
    """input != other of booleans"""
    return e.compare(as_value(e, input, BOOL), as_value(e, other, BOOL), "ne")


@handles(
    "bitwise_and", Kind.POINTWISE, [torch.bitwise_and, operator.and_], ["bitwise_and", "__and__"]
)
def bitwise_and(e: Emitter, input: Operand, other: Operand) -> Value:
    """Both; of an integer and 2**k - 1 the remainder by 2**k (floor division: of negatives too)"""
    if e.dtype == BOOL:
        return _logical(e, m.And, input, other)
    number, value = (input, other) if isinstance(input, int) else (other, input)
    if not isinstance(number, int) or number < 0 or number & (number + 1):
        raise UnsupportedError("& of integers; only with a constant 2**k - 1 (write %, //)")
    return binary(e, m.Mod, value, number + 1, e.dtype)


@handles("bitwise_or", Kind.POINTWISE, [torch.bitwise_or, operator.or_], ["bitwise_or", "__or__"])
def bitwise_or(e: Emitter, input: Operand, other: Operand) -> Value:
    _of_booleans(e, "|")
    return _logical(e, m.Or, input, other)


@handles(
    "bitwise_xor", Kind.POINTWISE, [torch.bitwise_xor, operator.xor], ["bitwise_xor", "__xor__"]
)
def bitwise_xor(e: Emitter, input: Operand, other: Operand) -> Value:
    _of_booleans(e, "^")
    return logical_xor(e, input, other)


@handles(
    "bitwise_not",
    Kind.POINTWISE,
    [torch.bitwise_not, operator.invert],
    ["bitwise_not", "__invert__"],
)
def bitwise_not(e: Emitter, input: Operand) -> Value:
    _of_booleans(e, "~")
    return _logical(e, m.Not, input)


@handles(
    "bitwise_left_shift",
    Kind.POINTWISE,
    [torch.bitwise_left_shift, operator.lshift],
    ["bitwise_left_shift", "__lshift__"],
)
def shift_left(e: Emitter, input: Operand, other: Operand) -> Value:
    """Multiplication by a power of two"""
    return binary(e, m.Mul, input, _power(e, other), e.dtype)


@handles(
    "bitwise_right_shift",
    Kind.POINTWISE,
    [torch.bitwise_right_shift, operator.rshift],
    ["bitwise_right_shift", "__rshift__"],
)
def shift_right(e: Emitter, input: Operand, other: Operand) -> Value:
    """Division by a power of two, rounded down"""
    return binary(e, m.Div, input, _power(e, other), e.dtype)


def _power(e: Emitter, exponent: Operand) -> int:
    if not isinstance(exponent, int) or not 0 <= exponent < e.dtype.bits - 1:
        raise UnsupportedError("a shift by something else than a constant; write * or //")
    return int(2**exponent)


@handles("where", Kind.POINTWISE, [torch.where], [])
def where(e: Emitter, condition: Value, input: Operand, other: Operand) -> Value:
    """math.select"""
    lhs, rhs = as_value(e, input, e.dtype), as_value(e, other, e.dtype)
    return e.select(e.cast(condition, BOOL), lhs, rhs, e.dtype)


@handles("tensor.where", Kind.POINTWISE, [], ["where"])
def tensor_where(e: Emitter, input: Value, condition: Value, other: Operand) -> Value:
    """``x.where(condition, other)``"""
    return where(e, condition, input, other)


@handles("masked_fill", Kind.POINTWISE, [torch.masked_fill], ["masked_fill"])
def masked_fill(e: Emitter, input: Value, mask: Value, value: Operand) -> Value:
    """select(mask, value, input)"""
    return e.select(mask, as_value(e, value, e.dtype), input, e.dtype)


@handles("nan_to_num", Kind.POINTWISE, [torch.nan_to_num], ["nan_to_num"])
def nan_to_num(
    e: Emitter,
    input: Value,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Value:
    """NaN and infinities replaced; by 0 and the dtype's largest values if nothing is said"""
    dtype = e.dtype
    largest = (2 - dtype.epsilon) * 2.0 ** (2 ** (dtype.exponent - 1) - 1)
    x = e.select(e.compare(input, input, "ne"), e.const(nan or 0.0, dtype), input, dtype)
    for infinite, wanted in ((float("inf"), posinf), (-float("inf"), neginf)):
        number = largest if infinite > 0 else -largest
        replacement = e.const(number if wanted is None else wanted, dtype)
        x = e.select(e.compare(x, e.const(infinite, dtype), "eq"), replacement, x, dtype)
    return x


def _register_triangle(name: str, relation: str) -> Handler:
    @handles(name, Kind.POINTWISE, [getattr(torch, name)], [name])
    def triangle(e: Emitter, input: Value, diagonal: int = 0) -> Value:
        """select(column - row <= diagonal, input, 0); >= for the upper triangle"""
        shape = tensor_type(input).shape
        rows, columns = e.iota((shape[-2], ONE), 0), e.iota((ONE, shape[-1]), 1)
        limit = binary(e, m.Add, rows, diagonal, tensor_type(rows).dtype) if diagonal else rows
        inside = e.compare(columns, limit, relation)
        if e.dtype == BOOL:
            return e.op(m.And, inside, input)
        return e.select(inside, input, e.const(0, e.dtype), e.dtype)

    return triangle


_register_triangle("tril", "le")
_register_triangle("triu", "ge")
