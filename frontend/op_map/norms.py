"""Norms, and normalisations by them: layer_norm and rms_norm along the last dimension, lengths of
vectors along any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.fx import Node

from tilewright.frontend.op_map.emitter import ONE, Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.reductions import Axes, axes_of
from tilewright.frontend.op_map.registry import Kind, axes_named, handles
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


# ---- lengths of vectors


def _length(e: Emitter, x: Value, p: object, dim: Axes, keep: bool) -> Value:
    """The p-norm in the dtype of ``x``, for p of 1, 2 and infinity."""
    axes = axes_of(x, dim)
    if p == 2:
        return e.op(m.Sqrt, e.reduce(e.op(m.Mul, x, x), "sum", axes, keep))
    if p in (1, float("inf")):
        return e.reduce(e.op(m.Abs, x), "sum" if p == 1 else "max", axes, keep)
    raise UnsupportedError(f"the norm of p={p}; only of 1, 2 and infinity")


@handles("norm", Kind.REDUCTION, [torch.norm], ["norm"], axes=axes_named(2, None))
def norm(
    e: Emitter,
    input: Value,
    p: float | str | None = "fro",
    dim: Axes = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    """The p-norm of vectors, in f32 (f64)"""
    x = e.cast(e.cast(input, e.dtype), arithmetic_dtype(e.dtype))
    return e.cast(_length(e, x, 2 if p in ("fro", None) else p, dim, keepdim), e.dtype)


@handles("vector_norm", Kind.REDUCTION, [torch.linalg.vector_norm], axes=axes_named(2, None))
def vector_norm(
    e: Emitter,
    x: Value,
    ord: float = 2,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Value:
    """The norm of vectors, in f32 (f64)"""
    wide = e.cast(e.cast(x, e.dtype), arithmetic_dtype(e.dtype))
    return e.cast(_length(e, wide, ord, dim, keepdim), e.dtype)


@handles("normalize", Kind.REDUCTION, [F.normalize], axes=axes_named(2, 1))
def normalize(e: Emitter, input: Value, p: float = 2.0, dim: Axes = 1, eps: float = 1e-12) -> Value:
    """input / max(norm(input), eps), the norm rounded to the input's dtype"""
    wide = arithmetic_dtype(e.dtype)
    x = e.cast(input, wide)
    length = _stored(e, _length(e, x, p, dim, keep=True))
    bounded = _stored(e, e.op(m.Max, length, e.const(eps, wide)))
    return e.cast(e.op(m.Div, x, bounded), e.dtype)


def _stored(e: Emitter, x: Value) -> Value:
    """Rounded to the result's dtype, as torch stores it in between."""
    return e.cast(e.cast(x, e.dtype), tensor_type(x).dtype)


@handles("cosine_similarity", Kind.REDUCTION, [F.cosine_similarity], axes=axes_named(2, 1))
def cosine_similarity(e: Emitter, x1: Value, x2: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """x1 . x2 / (max(norm(x1), eps) * max(norm(x2), eps))"""
    wide = arithmetic_dtype(e.dtype)
    both = [tensor_type(x).shape for x in (x1, x2)]
    rank = max(map(len, both))
    padded = ((*(ONE,) * (rank - len(x)), *x) for x in both)
    shape = [a if b == ONE else b for a, b in zip(*padded, strict=True)]
    unit = []
    for x in (e.broadcast(e.cast(y, wide), shape) for y in (x1, x2)):
        length = _length(e, x, 2, dim, keep=True)
        unit.append(e.op(m.Div, x, e.op(m.Max, length, e.const(eps, wide))))
    return e.cast(e.reduce(e.op(m.Mul, *unit), "sum", (dim,), False), e.dtype)
