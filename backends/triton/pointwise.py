"""Pointwise operations as Triton expressions of names and literals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir.core import Op
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import IndexType, Type

NAMES = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "f16": "tl.float16",
    "bf16": "tl.bfloat16",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "bool": "tl.int1",
}
HELPERS = {
    "floor_div": """@triton.jit
def floor_div(a, b):
    divisor = b + (b == 0)
    quotient = a // divisor
    above = (a % divisor != 0) & ((a < 0) != (divisor < 0))
    return (quotient - above.to(quotient.dtype)) * (b != 0)
""",
    "nearest": """@triton.jit
def nearest(x):
    # beside such a number there is no place for a fraction; those beyond it are integers
    large = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    size = tl.abs(x)
    whole = tl.where(size < large, (size + large) - large, size)
    return tl.where(x < 0.0, -whole, whole)
""",
    "widened": """@triton.jit
def widened(x):
    return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
""",
}
_FLOAT: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "{0} / {1}",
    m.Max: "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    m.Min: "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    m.Pow: "tl.exp2(tl.log2({0}) * {1})",
    m.Fma: "{0} * {1} + {2}",
    m.Larger: "tl.maximum({0}, {1})",
    m.Smaller: "tl.minimum({0}, {1})",
    m.Neg: "-{0}",
    m.Abs: "tl.abs({0})",
    m.Exp: "tl.exp({0})",
    m.Exp2: "tl.exp2({0})",
    m.Log: "tl.log({0})",
    m.Log2: "tl.log2({0})",
    m.Tanh: "1.0 - 2.0 / (tl.exp2({0} * 2.8853900817779268) + 1.0)",
    m.Erf: "tl.erf({0})",
    m.Sqrt: "tl.sqrt({0})",
    m.Rsqrt: "tl.rsqrt({0})",
    m.Round: "nearest({0})",
    m.Sigmoid: "1.0 / (1.0 + tl.exp2({0} * -1.4426950408889634))",
}
_INTEGER: dict[type[Op], str] = {
    m.Add: "{0} + {1}",
    m.Sub: "{0} - {1}",
    m.Mul: "{0} * {1}",
    m.Div: "floor_div({0}, {1})",
    m.Mod: "{0} - floor_div({0}, {1}) * {1}",
    m.Max: "tl.maximum({0}, {1})",
    m.Min: "tl.minimum({0}, {1})",
    m.Fma: "{0} * {1} + {2}",
    m.Larger: "tl.maximum({0}, {1})",
    m.Smaller: "tl.minimum({0}, {1})",
    m.Neg: "-{0}",
    m.Abs: "tl.abs({0})",
    m.Round: "{0}",
    m.BitAnd: "{0} & {1}",
    m.BitOr: "{0} | {1}",
    m.BitXor: "{0} ^ {1}",
    m.ShiftLeft: "{0} << {1}",
    m.ShiftRightSigned: "{0} >> {1}",
}
_BOOL: dict[type[Op], str] = {
    m.Add: "{0} | {1}",
    m.Mul: "{0} & {1}",
    m.And: "{0} & {1}",
    m.Or: "{0} | {1}",
    m.Not: "~{0}",
    m.Max: "{0} | {1}",
    m.Min: "{0} & {1}",
}
_INDEX: dict[type[Op], str] = {
    **_INTEGER,
    m.Div: "{0} // {1}",  # run-time integers of tile programs are not negative where they divide
    m.Mod: "{0} % {1}",
}
_RELATION = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def dtype_name(dtype: DType) -> str:
    """Triton's name of a dtype. Raises UnsupportedError for those that it lacks."""
    if dtype.name not in NAMES:
        raise UnsupportedError(f"{dtype} in the triton back end")
    return NAMES[dtype.name]


def dtype_of(type_: Type) -> DType:
    """The dtype of a tile or of memory."""
    dtype = getattr(type_, "dtype", None)
    assert isinstance(dtype, DType)
    return dtype


def literal(value: float, dtype: DType) -> str:
    """A number of a dtype as text."""
    if dtype == BOOL:
        return "True" if value else "False"
    if not dtype.is_float:
        return str(int(value))
    number = float(value)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def expression(op: Op, inputs: Sequence[str]) -> str:
    """A pointwise operation on inputs that are names, literals or in parentheses."""
    if isinstance(op, m.Compare):
        return f"{inputs[0]} {_RELATION[op.relation]} {inputs[1]}"
    if isinstance(op, m.Select):
        return f"tl.where({', '.join(inputs)})"
    form = _table(op).get(type(op))
    if form is None:
        raise UnsupportedError(f"{op.name} in the triton back end", op.loc)
    return form.format(*inputs)


def _table(op: Any) -> dict[type[Op], str]:
    type_ = op.operands[0].type
    if isinstance(type_, IndexType):
        return _INDEX
    dtype = dtype_of(type_)
    if dtype == BOOL:
        return _BOOL
    return _FLOAT if dtype.is_float else _INTEGER


Emit = Callable[[Any], str]
