"""Tensors that come from no tensor: positions and constants. Masks are built from these."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.frontend.op_map.emitter import Emitter
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import Handler, Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.ir.errors import UnsupportedError


@handles("arange", Kind.GENERATOR, [torch.arange], [])
def arange(e: Emitter, *bounds: Operand, step: Operand = 1, **_options: object) -> Value:
    """0, 1, 2, … times step plus start; the length is that of torch's result"""
    start = bounds[0] if len(bounds) > 1 else 0
    step = bounds[2] if len(bounds) > 2 else step
    if not (isinstance(start, int) and isinstance(step, int)):
        raise UnsupportedError("arange whose start or step is not a constant integer")
    value = e.iota(e.shape, 0)
    if step != 1:
        value = e.op(m.Mul, value, e.const(step, I64))
    if start:
        value = e.op(m.Add, value, e.const(start, I64))
    return e.cast(value, e.dtype)


def _filled(e: Emitter, number: object) -> Value:
    return e.broadcast(as_value(e, number, e.dtype), e.shape)


@handles("full", Kind.GENERATOR, [torch.full, torch.full_like])
def full(e: Emitter, _shape: object, fill_value: object, *_: object, **_options: object) -> Value:
    """One number everywhere"""
    return _filled(e, fill_value)


@handles("new_full", Kind.GENERATOR, [], ["new_full"])
def new_full(e: Emitter, _model: object, size: object, fill_value: object, **_: object) -> Value:
    """``x.new_full(size, number)``"""
    return _filled(e, fill_value)


def _register_constant(name: str, number: int) -> Handler:
    functions: list[Any] = [getattr(torch, name), getattr(torch, f"{name}_like")]

    @handles(name, Kind.GENERATOR, functions, [f"new_{name}"])
    def constant(e: Emitter, *_shape: object, **_options: object) -> Value:
        return _filled(e, number)

    return constant


_register_constant("zeros", 0)
_register_constant("ones", 1)


@handles("tensor", Kind.GENERATOR, [torch.tensor, torch.scalar_tensor], [])
def tensor(e: Emitter, data: object, **_options: object) -> Value:
    """``torch.tensor(number)``"""
    if not isinstance(data, int | float):
        raise UnsupportedError("torch.tensor of a list; only of a number")
    return as_value(e, data, e.dtype)
