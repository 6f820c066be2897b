"""torch's rules for operands of different dtypes, and Python numbers as operands."""

from __future__ import annotations

import torch

from tilewright.frontend.op_map.emitter import Emitter, tensor_type
from tilewright.frontend.torch_dtypes import ir_dtype, torch_dtype
from tilewright.ir.core import Value
from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import UnsupportedError

Operand = Value | int | float | bool

_CATEGORY = {"bool": 0, "int": 1, "uint": 1, "float": 2}


class RuntimeNumber:
    """A Python number of the captured function that changes from call to call, such as a length."""

    def __init__(self, text: str) -> None:
        self.text = text


def as_value(e: Emitter, operand: object, dtype: DType) -> Value:
    """A tensor cast to ``dtype`` or a number as a constant of it."""
    if isinstance(operand, Value):
        return e.cast(operand, dtype)
    if isinstance(operand, RuntimeNumber):
        raise UnsupportedError(f"the number {operand.text} changes from call to call")
    if not isinstance(operand, int | float):
        raise UnsupportedError(f"an operand of type {type(operand).__name__}")
    if dtype.kind == "bool":
        return e.const(bool(operand), dtype)
    return e.const(float(operand) if dtype.is_float else int(operand), dtype)


def _number_dtype(number: object) -> DType:
    if isinstance(number, bool):
        return TABLE["bool"]
    if isinstance(number, int):
        return TABLE["i64"]
    return ir_dtype(torch.get_default_dtype())


def _promote(dtypes: list[DType]) -> DType:
    """The smallest dtype that torch converts all of these to."""
    best = torch_dtype(dtypes[0])
    for dtype in dtypes[1:]:
        best = torch.promote_types(best, torch_dtype(dtype))
    return ir_dtype(best)


def promoted(*operands: object) -> DType:
    """The common dtype: tensors with dimensions decide, rank-0 tensors and numbers only lift the
    category (bool < int < float), as in ``torch.result_type``."""
    ranked: list[list[DType]] = [[], [], []]
    for operand in operands:
        if isinstance(operand, Value):
            type_ = tensor_type(operand)
            ranked[0 if type_.shape else 1].append(type_.dtype)
        else:
            ranked[2].append(_number_dtype(operand))
    result: DType | None = None
    for group in ranked:
        if not group:
            continue
        dtype = _promote(group)
        if result is None or _CATEGORY[dtype.kind] > _CATEGORY[result.kind]:
            result = dtype
    assert result is not None
    return result
