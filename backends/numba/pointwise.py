"""Pointwise operations as Python: one expression per element, of names and literals only.

Numba's types follow NumPy's for f32 and f64, but integers widen to 64 bits: an operation on a
narrower dtype is brought back to it, and one on 16-bit floats, held in f32, is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.backends.numba.registers import held_name, literal
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op
from tilewright.ir.dtypes import BOOL, F32, F64, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import IndexType, Type

_FLOAT: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "{0} / {1}",
    m.Max: "maximum({0}, {1})",
    m.Min: "minimum({0}, {1})",
    m.Pow: "{0} ** {1}",
    m.Larger: "{0} if {0} > {1} else {1}",
    m.Smaller: "{0} if {0} < {1} else {1}",
    m.Neg: "-{0}",
    m.Abs: "abs({0})",
    m.Exp: "np.exp({0})",
    m.Exp2: "np.exp2({0})",
    m.Log: "np.log({0})",
    m.Log2: "np.log2({0})",
    m.Tanh: "np.tanh({0})",
    m.Erf: "erf({0})",
    m.Sqrt: "np.sqrt({0})",
    m.Rsqrt: "{one} / np.sqrt({0})",
    m.Round: "np.rint({0})",
    m.Scale2: "scale2_{held}({0}, {1})",
    m.Sigmoid: "{one} / ({one} + np.exp(-{0}))",
}
_INTEGER: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "floor_div({0}, {1})",
    m.Mod: "floor_mod({0}, {1})",
    m.Max: "max({0}, {1})",
    m.Min: "min({0}, {1})",
    m.Larger: "max({0}, {1})",
    m.Smaller: "min({0}, {1})",
    m.Neg: "-{0}",
    m.Abs: "abs({0})",
    m.Round: "{0}",
    m.BitAnd: "{0} & {1}",
    m.BitOr: "{0} | {1}",
    m.BitXor: "{0} ^ {1}",
}
_BOOL: dict[type[Op], str] = {
    m.Add: "{0} | {1}",
    m.Mul: "{0} & {1}",
    m.And: "{0} & {1}",
    m.Or: "{0} | {1}",
    m.Not: "not {0}",
    m.Max: "{0} | {1}",
    m.Min: "{0} & {1}",
}
_RELATION = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}

Special = Callable[[Any, list[str], DType], str]
_SPECIAL: dict[type[Op], Special] = {}


def _special(cls: type[Op]) -> Callable[[Special], Special]:
    """Registers how an op class is written whatever its dtype."""

    def register(write: Special) -> Special:
        _SPECIAL[cls] = write
        return write

    return register


def dtype_of(type_: Type) -> DType:
    """The element type; an index is an i64."""
    dtype = I64 if isinstance(type_, IndexType) else getattr(type_, "dtype", None)
    assert isinstance(dtype, DType), f"{type_} has no elements"
    return dtype


def expression(op: Op, inputs: list[str]) -> str:
    """One element of a pointwise op from its operands' elements.

    Raises UnsupportedError naming the op and the dtype that it cannot be computed in.
    """
    dtype = dtype_of(op.operands[0].type)
    special = _SPECIAL.get(type(op))
    if special is not None:
        return special(op, inputs, dtype)
    table = _BOOL if dtype == BOOL else _FLOAT if dtype.is_float else _INTEGER
    form = table.get(type(op))
    if form is None:
        raise UnsupportedError(f"{op.name} on {dtype} in the numba back end", op.loc)
    if type(op) in (m.Div, m.Mod) and dtype.is_int and _positive(inputs[1]):
        form = "{0} // {1}" if isinstance(op, m.Div) else "{0} % {1}"
    one, held = literal(1.0, dtype), held_name(dtype)
    return settle(form.format(*inputs, one=one, held=held), dtype)


def _positive(text: str) -> bool:
    return text.isdigit() and int(text) > 0


def settle(text: str, dtype: DType) -> str:
    """The result of arithmetic brought back to its dtype."""
    if dtype in (F64, F32, I64, BOOL):
        return text
    return f"round_{dtype}({text})" if dtype.is_float else f"{dtype}({text})"


@_special(m.Compare)
def _compare(op: m.Compare, inputs: list[str], dtype: DType) -> str:
    text = f"{inputs[0]} {_RELATION[op.relation]} {inputs[1]}"
    return f"int({text})" if isinstance(op.result.type, IndexType) else text


@_special(m.Select)
def _select(op: m.Select, inputs: list[str], dtype: DType) -> str:
    condition, lhs, rhs = inputs
    if condition in ("True", "False"):
        return lhs if condition == "True" else rhs
    return f"{lhs} if {condition} else {rhs}"


@_special(m.ShiftLeft)
def _shift_left(op: Op, inputs: list[str], dtype: DType) -> str:
    return settle(f"{inputs[0]} << {inputs[1]}", dtype)


@_special(m.ShiftRight)
def _shift_right(op: Op, inputs: list[str], dtype: DType) -> str:
    """On the bits without a sign, since zeros follow."""
    x, distance = inputs
    if dtype == I64:
        return f"shift_right_i64({x}, {distance})"
    if dtype.kind == "int":
        x = f"({x} & {(1 << dtype.bits) - 1})"
    return settle(f"{x} >> {distance}", dtype)


@_special(m.ShiftRightSigned)
def _shift_right_signed(op: Op, inputs: list[str], dtype: DType) -> str:
    """Python's shift is one of signed numbers."""
    x, distance = inputs
    if dtype.kind != "int":
        high = 1 << dtype.bits - 1
        x = f"(({x} ^ {high}) - {high})"
    return settle(f"{x} >> {distance}", dtype)


@_special(m.Fma)
def _fma(op: m.Fma, inputs: list[str], dtype: DType) -> str:
    x, y, z = inputs
    return f"fused({x}, {y}, {z})" if op.fused else settle(f"{x} * {y} + {z}", dtype)


@_special(m.Fraction)
def _fraction(op: m.Fraction, inputs: list[str], dtype: DType) -> str:
    which = "down" if op.down else held_name(dtype)
    return settle(f"fraction_{which}({inputs[0]})", dtype)


@_special(m.Cast)
def _cast(op: m.Cast, inputs: list[str], dtype: DType) -> str:
    return convert(inputs[0], dtype, op.dtype)


def convert(x: str, source: DType, target: DType) -> str:
    """A value in another dtype: floats to nearest even, to integers toward zero."""
    if source == target:
        return x
    if target == BOOL:
        return f"{x} != 0"
    if target.is_float:
        return _to_float(x, source, target)
    whole = f"truncated({x})" if source.is_float else f"i64({x})"
    if target == I64:
        return whole
    return f"{target}({whole if source.is_float else x})"


def _to_float(x: str, source: DType, target: DType) -> str:
    held = source.is_float and source.bits == 16  # then x is an f32
    if target.bits >= 32:
        return x if held and target == F32 else f"{held_name(target)}({x})"
    if held or source == F32:
        return f"round_{target}({x})"
    return f"round_{target}(narrowed({x if source == F64 else f'f64({x})'}))"
