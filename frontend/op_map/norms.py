"""Normalisations of rows: layer_norm and rms_norm along the last dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.fx import Node

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.registry import Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError


def normalised_axes(node: Node) -> frozenset[int]:
    """The dimensions that ``normalized_shape`` names: the last ones."""
    given = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else ())
    return frozenset(range(-len(given), 0)) if isinstance(given, tuple | list) else frozenset()


@handles("layer_norm", Kind.REDUCTION, [F.layer_norm, torch.layer_norm], axes=normalised_axes)
def layer_norm(
    e: Emitter,
    input: Value,
    normalized_shape: Sequence[object],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """(x - mean) / sqrt(variance + eps) * weight + bias, in f32 (f64)"""
    wide = arithmetic_dtype(e.dtype)
    _one_dimension(normalized_shape)
    x = e.cast(input, wide)
    apart = e.op(m.Sub, x, e.mean(x, (-1,), keep=True))
    return _scaled(e, apart, eps, (weight, bias))


@handles("rms_norm", Kind.REDUCTION, [F.rms_norm, torch.rms_norm], axes=normalised_axes)
def rms_norm(
    e: Emitter,
    input: Value,
    normalized_shape: Sequence[object],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    """x / sqrt(mean of squares + eps) * weight, in f32 (f64); ``eps`` None: that of the dtype
    that torch computes in"""
    wide = arithmetic_dtype(e.dtype)
    _one_dimension(normalized_shape)
    x = e.cast(input, wide)
    least = torch.finfo(torch.float64 if wide.bits == 64 else torch.float32).eps
    return _scaled(e, x, least if eps is None else eps, (weight, None))


def _one_dimension(normalized_shape: Sequence[object]) -> None:
    if len(normalized_shape) != 1:
        raise UnsupportedError("over more dimensions than the last")


def _scaled(e: Emitter, x: Value, eps: float, factors: tuple[Value | None, Value | None]) -> Value:
    """x / sqrt(mean of squares + eps), times weight, plus bias, as torch's dtype."""
    wide = tensor_type(x).dtype
    square = e.mean(e.op(m.Mul, x, x), (-1,), keep=True)
    root = e.op(m.Rsqrt, e.op(m.Add, square, e.const(eps, wide)))
    y = e.op(m.Mul, x, root)
    for cls, factor in zip((m.Mul, m.Add), factors, strict=True):
        if factor is not None:
            y = e.op(cls, y, e.cast(factor, wide))
    return e.cast(y, e.dtype)
