"""Activation functions: relu and its kin, and those made of exponentials."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tilewright.frontend.op_map.elementary import exp_less_one, log_of_one_more
from tilewright.frontend.op_map.emitter import ONE, Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.pointwise import binary, clamp
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.activation_functions import activated
from tilewright.ir.core import Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError

IN_PLACE = "with inplace=True, which writes its input"


def _wide(e: Emitter, input: Value, inplace: bool = False) -> tuple[Value, DType]:
    """The input in the dtype that torch computes in, and that dtype."""
    if inplace:
        raise UnsupportedError(IN_PLACE)
    wide = arithmetic_dtype(e.dtype)
    return e.cast(input, wide), wide


@handles("relu", Kind.POINTWISE, [torch.relu, F.relu], ["relu"])
def relu(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """max(input, 0)"""
    return _bounded(e, input, 0, None, inplace)


@handles("relu6", Kind.POINTWISE, [F.relu6])
def relu6(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """min(max(input, 0), 6)"""
    return _bounded(e, input, 0, 6, inplace)


@handles("hardtanh", Kind.POINTWISE, [F.hardtanh])
def hardtanh(
    e: Emitter, input: Value, min_val: float = -1, max_val: float = 1, inplace: bool = False
) -> Value:
    """min(max(input, min_val), max_val)"""
    return _bounded(e, input, min_val, max_val, inplace)


def _bounded(e: Emitter, input: Value, low: float, high: float | None, inplace: bool) -> Value:
    if inplace:
        raise UnsupportedError(IN_PLACE)
    return clamp(e, input, low, high)


@handles("leaky_relu", Kind.POINTWISE, [F.leaky_relu])
def leaky_relu(
    e: Emitter, input: Value, negative_slope: float = 0.01, inplace: bool = False
) -> Value:
    """The input where it is above 0, else negative_slope * input"""
    x, wide = _wide(e, input, inplace)
    scaled = binary(e, m.Mul, x, negative_slope, wide)
    return e.cast(e.select(_above(e, x, 0.0), x, scaled, wide), e.dtype)


@handles("prelu", Kind.POINTWISE, [torch.prelu], ["prelu"])
def prelu(e: Emitter, input: Value, weight: Value) -> Value:
    """The input where it is above 0, else weight * input; of several weights one for each place of
    the second dimension"""
    shape = [ONE] * len(e.shape)
    count = tensor_type(weight).shape
    if len(count) > 1:
        raise UnsupportedError("prelu with a weight of more than one dimension")
    if count and count != (ONE,):
        shape[1] = count[0]
    x, wide = _wide(e, input)
    scaled = e.op(m.Mul, x, e.cast(e.reshape(weight, shape), wide))
    return e.cast(e.select(_above(e, x, 0.0), x, scaled, wide), e.dtype)


@handles("threshold", Kind.POINTWISE, [torch.threshold, F.threshold])
def threshold(
    e: Emitter, input: Value, threshold: float, value: Operand, inplace: bool = False
) -> Value:
    """The input where it is above the threshold, else value"""
    x, wide = _wide(e, input, inplace)
    above = _above(e, x, threshold)
    return e.cast(e.select(above, x, as_value(e, value, wide), wide), e.dtype)


@handles("elu", Kind.POINTWISE, [F.elu])
def elu(e: Emitter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """The input where it is above 0, else alpha * (exp(input) - 1)"""
    x, _ = _wide(e, input, inplace)
    return e.cast(_elu(e, x, alpha, 1.0), e.dtype)


@handles("celu", Kind.POINTWISE, [torch.celu, F.celu])
def celu(e: Emitter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """The input where it is above 0, else alpha * (exp(input / alpha) - 1)"""
    x, _ = _wide(e, input, inplace)
    return e.cast(_elu(e, x, alpha, 1 / alpha), e.dtype)


@handles("selu", Kind.POINTWISE, [torch.selu, F.selu])
def selu(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """scale * elu(input, alpha) with the two numbers of the paper (arXiv 1706.02515)"""
    x, wide = _wide(e, input, inplace)
    scaled = _elu(e, x, 1.6732632423543772848170429916717, 1.0)
    return e.cast(binary(e, m.Mul, scaled, 1.0507009873554804934193349852946, wide), e.dtype)


def _elu(e: Emitter, x: Value, alpha: float, inner: float) -> Value:
    wide = tensor_type(x).dtype
    below = x if inner == 1 else binary(e, m.Mul, x, inner, wide)
    below = exp_less_one(e, e.op(m.Min, below, e.const(0.0, wide)))
    return e.select(_above(e, x, 0.0), x, binary(e, m.Mul, below, alpha, wide), wide)


@handles("silu", Kind.POINTWISE, [F.silu])
def silu(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """input * sigmoid(input)"""
    return _activated(e, "silu", input, inplace)


@handles("gelu", Kind.POINTWISE, [F.gelu])
def gelu(e: Emitter, input: Value, approximate: str = "none") -> Value:
    """x / 2 * (1 + erf(x / sqrt(2))); ``approximate="tanh"``: x / 2 * (1 + tanh(sqrt(2 / pi) * (x +
    0.044715 * x^3)))"""
    if approximate not in ("none", "tanh"):
        raise UnsupportedError('gelu: approximate is "none" or "tanh"')
    return _activated(e, "gelu_tanh" if approximate == "tanh" else "gelu", input)


def _activated(e: Emitter, name: str, input: Value, inplace: bool = False) -> Value:
    """An activation function, in f32 (f64)."""
    x, wide = _wide(e, input, inplace)
    return e.cast(activated(e.op, lambda value: e.const(value, wide), name, x), e.dtype)


@handles("hardsigmoid", Kind.POINTWISE, [F.hardsigmoid])
def hardsigmoid(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """min(max(input + 3, 0), 6) / 6"""
    x, wide = _wide(e, input, inplace)
    return e.cast(binary(e, m.Div, _hard(e, x), 6.0, wide), e.dtype)


@handles("hardswish", Kind.POINTWISE, [F.hardswish])
def hardswish(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """input * min(max(input + 3, 0), 6) / 6"""
    x, wide = _wide(e, input, inplace)
    return e.cast(binary(e, m.Div, e.op(m.Mul, x, _hard(e, x)), 6.0, wide), e.dtype)


def _hard(e: Emitter, x: Value) -> Value:
    wide = tensor_type(x).dtype
    raised = e.op(m.Max, binary(e, m.Add, x, 3.0, wide), e.const(0.0, wide))
    return e.op(m.Min, raised, e.const(6.0, wide))


@handles("softplus", Kind.POINTWISE, [F.softplus])
def softplus(e: Emitter, input: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(input * beta)) / beta; the input itself above the threshold"""
    x, _ = _wide(e, input)
    return e.cast(_softplus(e, x, beta, threshold), e.dtype)


def _softplus(e: Emitter, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    wide = tensor_type(x).dtype
    scaled = x if beta == 1 else binary(e, m.Mul, x, beta, wide)
    logarithm = log_of_one_more(e, e.op(m.Exp, scaled))
    result = logarithm if beta == 1 else binary(e, m.Div, logarithm, beta, wide)
    return e.select(_above(e, scaled, threshold), x, result, wide)


@handles("mish", Kind.POINTWISE, [F.mish])
def mish(e: Emitter, input: Value, inplace: bool = False) -> Value:
    """input * tanh(softplus(input))"""
    x, _ = _wide(e, input, inplace)
    return e.cast(e.op(m.Mul, x, e.op(m.Tanh, _softplus(e, x))), e.dtype)


@handles("logsigmoid", Kind.POINTWISE, [F.logsigmoid])
def logsigmoid(e: Emitter, input: Value) -> Value:
    """min(input, 0) - log(1 + exp(-abs(input)))"""
    x, wide = _wide(e, input)
    small = log_of_one_more(e, e.op(m.Exp, e.op(m.Neg, e.op(m.Abs, x))))
    return e.cast(e.op(m.Sub, e.op(m.Min, x, e.const(0.0, wide)), small), e.dtype)


@handles("tanhshrink", Kind.POINTWISE, [F.tanhshrink])
def tanhshrink(e: Emitter, input: Value) -> Value:
    """input - tanh(input)"""
    x, _ = _wide(e, input)
    return e.cast(e.op(m.Sub, x, e.op(m.Tanh, x)), e.dtype)


def _above(e: Emitter, x: Value, bound: float) -> Value:
    return e.compare(x, e.const(bound, tensor_type(x).dtype), "gt")


@handles("dropout", Kind.POINTWISE, [F.dropout, torch.dropout])
def dropout(
    e: Emitter, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    """The identity outside training or with p = 0"""
    if training and p != 0:
        raise UnsupportedError("dropout while training stays with torch; call .eval()")
    return input
