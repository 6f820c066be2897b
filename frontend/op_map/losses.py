"""Losses of rows of scores: cross_entropy, of each row, their sum or mean."""

from __future__ import annotations

import torch.nn.functional as F
from torch.fx import Node

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.positions import look_up
from tilewright.frontend.op_map.reductions import log_sum_exp
from tilewright.frontend.op_map.registry import Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size


def _classes(_: Node) -> frozenset[int]:
    """The dimension of the classes: the last of two."""
    return frozenset({-1})


@handles("cross_entropy", Kind.REDUCTION, [F.cross_entropy], axes=_classes)
def cross_entropy(  # noqa: PLR0913, PLR0917 (torch's own signature)
    e: Emitter,
    input: Value,
    target: Value,
    weight: Value | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Value:
    """log(sum(exp(x))) - x[target] for rows [rows, classes], 0 where the target is
    ``ignore_index``, on GPUs NaN where it is no class (torch raises an error there);
    or the sum of all, or the mean of those that count"""
    scores, labels = tensor_type(input), tensor_type(target)
    plain = weight is None and size_average is None and reduce is None and label_smoothing == 0.0
    if not plain or len(scores.shape) != 2 or not labels.dtype.is_int:
        raise UnsupportedError("other than rows of classes without weights and smoothing")
    look_up(e, target, scores.shape[1], passed_over=ignore_index)
    wide = arithmetic_dtype(e.dtype)
    x = e.cast(input, wide)
    rows, classes = scores.shape
    label = e.reshape(target, (rows, Size.of(1)))
    places = e.broadcast(e.iota((Size.of(1), classes), 1, labels.dtype), scores.shape)
    hit = e.compare(places, e.broadcast(label, scores.shape), "eq")
    picked = e.reduce(e.select(hit, x, e.const(0.0, wide), wide), "sum", (1,), keep=True)
    loss = e.op(m.Sub, log_sum_exp(e, x, (1,)), picked)
    inside = e.op(
        m.And,
        e.compare(label, e.const(0, labels.dtype), "ge"),
        e.compare(label, e.count((classes,), labels.dtype), "lt"),
    )
    ignored = e.compare(label, e.const(ignore_index, labels.dtype), "eq")
    loss = e.select(inside, loss, e.const(float("nan"), wide), wide)
    loss = e.select(ignored, e.const(0.0, wide), loss, wide)
    if reduction == "none":
        return e.cast(e.reshape(loss, e.shape), e.dtype)
    total = e.reduce(loss, "sum", (0, 1), keep=False)
    if reduction == "mean":
        one, none = e.const(1.0, wide), e.const(0.0, wide)
        counts = e.select(ignored, none, one, wide)
        total = e.op(m.Div, total, e.reduce(counts, "sum", (0, 1), keep=False))
    return e.cast(total, e.dtype)
