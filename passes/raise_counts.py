"""Counts as they are written, as one operation: what torch has no name for that it can capture.

    scatter(0, ids, 1) {sum}               ->  segment_count(ids)
    sum over ids of (ids == 0, 1, …, E-1)  ->  segment_count(ids)        (one_hot(ids).sum)

Both would hold E numbers for every id; a count holds E in all.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Module, Op, Value
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph

ONE = Size.of(1)


def _type(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type


def _number(b: Rewriter, value: Value) -> float | None:
    """The number that a tensor holds everywhere."""
    while (op := b.producer(value)) is not None and isinstance(
        op, t.Broadcast | t.Reshape | m.Cast
    ):
        value = op.operands[0]
    known = b.constant(value)
    return None if known is None else float(known)


def scattered_ones(b: Rewriter, op: Op) -> Value | None:
    """scatter(0, ids, 1) {sum} -> segment_count(ids)"""
    if not isinstance(op, r.Scatter) or op.kind != "sum" or len(_type(op.x).shape) != 1:
        return None
    if _number(b, op.x) != 0 or _number(b, op.source) != 1:
        return None
    type_ = _type(op.result)
    counts = b(r.SegmentCount, op.ids, segments=type_.shape[0], hint=op.result.hint)
    return b(m.Cast, counts, dtype=type_.dtype, hint=op.result.hint)


def summed_one_hot(b: Rewriter, op: Op) -> Value | None:
    """sum(ids == iota) over every dimension of ids -> segment_count(ids)"""
    if not isinstance(op, t.Reduce) or op.kind != "sum" or op.keep:
        return None
    value: Value = op.result
    depth = 0
    inner: Op | None = op
    while isinstance(inner, t.Reduce) and inner.kind == "sum" and not inner.keep:
        if inner.axis % len(_type(inner.x).shape) == len(_type(inner.x).shape) - 1:
            return None  # over the classes
        value, depth = inner.x, depth + 1
        inner = b.producer(value)
    ids = _one_hot(b, value)
    if ids is None or depth != len(_type(value).shape) - 1:
        return None
    type_ = _type(op.result)
    counts = b(r.SegmentCount, ids, segments=type_.shape[0], hint=op.result.hint)
    return b(m.Cast, counts, dtype=type_.dtype, hint=op.result.hint)


def _one_hot(b: Rewriter, value: Value) -> Value | None:
    """The ids if ``value`` is cast(compare(ids [.., 1], iota [.., E]) {eq})."""
    cast = b.producer(value, m.Cast)
    compare = b.producer(cast.operands[0], m.Compare) if cast is not None else None
    if compare is None or compare.attrs["relation"] != "eq":
        return None
    ids, classes = compare.operands
    rank = len(_type(ids).shape)
    iota = b.producer(classes, t.Iota)
    along = iota is not None and iota.attrs["axis"] % rank == rank - 1
    alone = along and all(n == ONE for n in _type(classes).shape[:-1])
    return ids if alone and _type(ids).shape[-1] == ONE else None


def raise_counts(module: Module) -> Module:
    """Both rules on every tensor graph."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        return scattered_ones(b, op) or summed_one_hot(b, op)

    return for_each_graph(module, lambda g: rewrite_graph(g, rule), "graph")
