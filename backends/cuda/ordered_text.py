"""Pointwise operations of programs in a fixed order as C++ expressions, one element each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.backends.cuda.pointwise import (
    BOOL_FORMS,
    HALVES,
    INTEGER_FORMS,
    RELATIONS,
    scalar_type,
)
from tilewright.backends.cuda.pointwise import literal as plain_literal
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op
from tilewright.ir.dtypes import BOOL, F32, F64, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import IndexType, Type

_FLOAT: dict[type[Op], str] = {
    m.Add: "tw::ordered::add({0}, {1})",
    m.Sub: "tw::ordered::sub({0}, {1})",
    m.Mul: "tw::ordered::mul({0}, {1})",
    m.Div: "tw::ordered::div({0}, {1})",
    m.Max: "tw::maximum({0}, {1})",
    m.Min: "tw::minimum({0}, {1})",
    m.Fma: "tw::ordered::fused({0}, {1}, {2})",
    m.Larger: "({0} > {1} ? {0} : {1})",
    m.Smaller: "({0} < {1} ? {0} : {1})",
    m.Neg: "-{0}",
    m.Abs: "fabsf({0})",
    m.Sqrt: "tw::ordered::root({0})",
    m.Round: "rintf({0})",
    m.Fraction: "tw::ordered::fraction({0})",
    m.Scale2: "tw::ordered::scaled({0}, {1})",
}
_WRAPPING: dict[type[Op], str] = {  # 32 bits that the bits of floats pass through
    m.Add: "tw::ordered::plus({0}, {1})",
    m.Sub: "tw::ordered::less({0}, {1})",
    m.ShiftLeft: "tw::ordered::up({0}, {1})",
}


def dtype_of(type_: Type) -> DType:
    """The element type; an index is an i64."""
    dtype = I64 if isinstance(type_, IndexType) else getattr(type_, "dtype", None)
    assert isinstance(dtype, DType), f"{type_} has no elements"
    return dtype


def literal(value: float, dtype: DType) -> str:
    """A constant, rounded to its dtype; floats by their bits."""
    if not dtype.is_float:
        return plain_literal(value, dtype)
    number = np.float32(dtype.round(np.float64(value)))
    if math.isfinite(number) and number == int(number):
        return f"{float(number)!r}f" if number or not np.signbit(number) else "-0.0f"
    return f"tw::bits_to_float(0x{int(number.view(np.uint32)):08x}u)"


def settled(text: str, dtype: DType) -> str:
    """A result of arithmetic in f32 as its dtype holds it."""
    return f"tw::to_float(tw::to_{dtype}({text}))" if dtype in HALVES else text


def expression(op: Op, inputs: Sequence[str]) -> str:
    """One element of a pointwise operation. Raises UnsupportedError."""
    dtype = dtype_of(op.operands[-1].type)
    if isinstance(op, m.Compare):
        return f"({inputs[0]} {RELATIONS[op.relation]} {inputs[1]})"
    if isinstance(op, m.Select):
        return f"({inputs[0]} ? {inputs[1]} : {inputs[2]})"
    if isinstance(op, m.Cast):
        return _cast(inputs[0], dtype, op.dtype)
    table = BOOL_FORMS if dtype == BOOL else _FLOAT if dtype.is_float else INTEGER_FORMS
    form = table.get(type(op))
    if dtype == I32:
        form = _WRAPPING.get(type(op), form)
    if form is None or dtype == F64:
        raise UnsupportedError(
            f"{op.name} of {dtype} in a fixed order in the cuda back end", op.loc
        )
    text = form.format(*inputs)
    if dtype.is_float:
        return settled(text, dtype)
    return f"({text})" if dtype in (BOOL, I64) else f"static_cast<{scalar_type(dtype)}>({text})"


def _cast(x: str, source: DType, target: DType) -> str:
    if target == BOOL:
        return f"({x} != 0)"
    if target == F32 and source in HALVES:
        return x
    return settled(f"static_cast<{scalar_type(target)}>({x})", target)
