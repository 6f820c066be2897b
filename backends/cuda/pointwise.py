"""Pointwise operations as C++ expressions of scalars; 16-bit floats are computed in f32."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.ir import ops_math as m
from tilewright.ir.core import Op
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, F64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import IndexType

TYPES = {
    "f64": "double",
    "f32": "float",
    "i64": "long long",
    "i32": "int",
    "i16": "short",
    "i8": "signed char",
    "u8": "unsigned char",
    "bool": "bool",
    "bf16": "tw::bf16",
    "f16": "tw::f16",
}
HALVES = (BF16, F16)  # held two in a word
_FLOAT: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "tw::divide({0}, {1})",
    m.Max: "tw::maximum({0}, {1})",
    m.Min: "tw::minimum({0}, {1})",
    m.Fma: "fmaf({0}, {1}, {2})",
    m.Larger: "fmaxf({0}, {1})",
    m.Smaller: "fminf({0}, {1})",
    m.Neg: "-{0}",
    m.Abs: "fabsf({0})",
    m.Exp: "tw::exp2({0} * 1.4426950408889634f)",
    m.Exp2: "tw::exp2({0})",
    m.Log: "tw::log2({0}) * 0.6931471805599453f",
    m.Log2: "tw::log2({0})",
    m.Pow: "tw::exp2(tw::log2({0}) * {1})",
    m.Tanh: "1.0f - tw::divide(2.0f, tw::exp2({0} * 2.8853900817779268f) + 1.0f)",  # as in Triton
    m.Erf: "erff({0})",
    m.Sqrt: "sqrtf({0})",
    m.Rsqrt: "tw::rsqrt({0})",
    m.Round: "rintf({0})",
    m.Sigmoid: "tw::divide(1.0f, 1.0f + tw::exp2({0} * -1.4426950408889634f))",
}
INTEGER_FORMS: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "tw::floor_div({0}, {1})",
    m.Mod: "tw::floor_mod({0}, {1})",
    m.Max: "tw::larger({0}, {1})",
    m.Min: "tw::smaller({0}, {1})",
    m.Larger: "tw::larger({0}, {1})",
    m.Smaller: "tw::smaller({0}, {1})",
    m.Fma: "{0} * {1} + {2}",
    m.Neg: "-{0}",
    m.Abs: "({0} < 0 ? -{0} : {0})",
    m.Round: "{0}",
    m.BitAnd: "{0} & {1}",
    m.BitOr: "{0} | {1}",
    m.BitXor: "{0} ^ {1}",
    m.ShiftLeft: "{0} << {1}",
    m.ShiftRightSigned: "{0} >> {1}",
}
BOOL_FORMS: dict[type[Op], str] = {
    m.Add: "{0} || {1}",
    m.Mul: "{0} && {1}",
    m.And: "{0} && {1}",
    m.Or: "{0} || {1}",
    m.Not: "!{0}",
    m.Max: "{0} || {1}",
    m.Min: "{0} && {1}",
}
_INDEX: dict[type[Op], str] = {
    **INTEGER_FORMS,
    m.Div: "{0} / {1}",  # run-time integers of tile programs are not negative where they divide
    m.Mod: "{0} % {1}",
}
RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def c_type(dtype: DType) -> str:
    """The C++ type of a dtype. Raises UnsupportedError for those that it lacks."""
    if dtype.name not in TYPES:
        raise UnsupportedError(f"{dtype} in the cuda back end")
    return TYPES[dtype.name]


def scalar_type(dtype: DType) -> str:
    """The type in which one element is computed: f32 for 16-bit floats."""
    return "float" if dtype in HALVES else c_type(dtype)


def literal(value: float, dtype: DType) -> str:
    """A number of a dtype as text."""
    if dtype == BOOL:
        return "true" if value else "false"
    if not dtype.is_float:
        number = int(value)
        if dtype.bits == 64:
            return f"{number}LL" if number != -(2**63) else "(-9223372036854775807LL - 1)"
        return str(number) if number != -(2**31) else "(-2147483647 - 1)"
    if math.isfinite(value):
        return repr(float(value)) + ("" if dtype == F64 else "f")
    return (
        "tw::nan()" if math.isnan(value) else ("tw::infinity()" if value > 0 else "-tw::infinity()")
    )


def expression(op: Op, inputs: Sequence[str]) -> str:
    """A pointwise operation on inputs that are atoms. Raises UnsupportedError."""
    if isinstance(op, m.Compare):
        return f"{inputs[0]} {RELATIONS[op.relation]} {inputs[1]}"
    if isinstance(op, m.Select):
        return f"{inputs[0]} ? {inputs[1]} : {inputs[2]}"
    if isinstance(op, m.Cast):
        return _cast(op, inputs[0])
    form = _table(op).get(type(op))
    if form is None:
        raise UnsupportedError(f"{op.name} in the cuda back end", op.loc)
    return form.format(*inputs)


def _cast(op: m.Cast, x: str) -> str:
    if op.dtype == BOOL:
        return f"{x} != 0"
    return f"static_cast<{scalar_type(op.dtype)}>({x})"


def _table(op: Op) -> dict[type[Op], str]:
    type_ = op.operands[-1].type
    if isinstance(type_, IndexType):
        return _INDEX
    dtype = getattr(type_, "dtype", F32)
    if dtype == BOOL:
        return BOOL_FORMS
    if dtype == F64:
        raise UnsupportedError(f"{op.name} of f64 in the cuda back end", op.loc)
    return _FLOAT if dtype.is_float else INTEGER_FORMS
