"""Composite operations into their parts, so that no later pass knows them.

``%p = tensor.softmax %x {axis = 1}``  ->  maximum, difference, exponential, sum, quotient
"""

from __future__ import annotations

import math
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph


def softmax_parts(b: Rewriter, op: Any) -> Value:
    """softmax(x) -> exp(x - max x) / sum exp(x - max x).

    With ``safe`` a row of -inf has the maximum replaced by 0 and its sum, 0, by 1: zeros result.
    """
    x, axis = op.x, op.axis
    assert isinstance(x.type, TensorType)
    wide = x if x.type.dtype.bits >= 32 else b(m.Cast, x, dtype=F32, hint=x.hint)
    assert isinstance(wide.type, TensorType)
    scalar = TensorType((), wide.type.dtype)
    top = b(t.Reduce, wide, kind="max", axis=axis, keep=True, hint="max")
    if op.safe:
        empty = b(m.Compare, top, b.const(-math.inf, scalar), relation="eq", hint="empty")
        top = b(m.Select, empty, b.const(0.0, scalar), top, hint="max")
    e = b(m.Exp, b(m.Sub, wide, top, hint="shifted"), hint="e")
    total = b(t.Reduce, e, kind="sum", axis=axis, keep=True, hint="sum")
    if op.safe:
        none = b(m.Compare, total, b.const(0.0, scalar), relation="eq", hint="none")
        total = b(m.Select, none, b.const(1.0, scalar), total, hint="sum")
    out = b(m.Div, e, total, hint=op.result.hint)
    return out if wide is x else b(m.Cast, out, dtype=x.type.dtype, hint=op.result.hint)


def sigmoid_parts(b: Rewriter, op: Any) -> Value:
    """sigmoid(x) -> 1 / (1 + exp(-x))"""
    x = op.operands[0]
    one = b.const(1.0, TensorType((), x.type.dtype))
    below = b(m.Add, b(m.Exp, b(m.Neg, x)), one)
    return b(m.Div, one, below, hint=op.result.hint)


def picked_parts(b: Rewriter, op: r.TakeAlong) -> Value:
    """x[t, ids[t]] -> sum_j select(j == ids[t], x[t, j], 0), for one position of each row.

    So a row that a product makes is read as it comes, and needs no memory.
    """
    x, ids = op.x.type, op.ids.type
    assert isinstance(x, TensorType) and isinstance(ids, TensorType)
    axis = op.axis_of(op.axis, len(x.shape))
    scalar = TensorType((), ids.dtype)
    last = b(m.SizeValue, size=x.shape[axis] - 1, type=scalar, hint="last")
    inside = b(m.Max, b(m.Min, op.ids, last), b.const(0, scalar), hint="inside")
    ones = tuple(n if at == axis else Size.of(1) for at, n in enumerate(x.shape))
    at = b(t.Iota, axis=axis, type=TensorType(ones, ids.dtype), hint="at")
    hit = b(m.Compare, *(b(t.Broadcast, v, shape=x.shape) for v in (at, inside)), relation="eq")
    narrow = x.dtype.bits < 32
    wide = b(m.Cast, op.x, dtype=F32) if narrow else op.x
    none = b.const(0.0, TensorType((), F32 if narrow else x.dtype))
    chosen = b(m.Select, hit, wide, none, hint="chosen")
    out = b(t.Reduce, chosen, kind="sum", axis=axis, keep=True, hint=op.result.hint)
    return b(m.Cast, out, dtype=x.dtype, hint=op.result.hint) if narrow else out


PARTS = {t.Softmax: softmax_parts, m.Sigmoid: sigmoid_parts}


def decompose(module: Module) -> Module:
    """Replaces composite tensor operations by their parts."""
    return for_each_graph(module, _in_parts, "graph")


def _in_parts(graph: Graph) -> Graph:
    made: set[Value] = set()  # by products, or of what they made
    for op in graph.body.ops:
        if isinstance(op, t.Contract) or not made.isdisjoint(op.operands):
            made.update(op.results)

    def rule(b: Rewriter, op: Op) -> Value | None:
        if isinstance(op, r.TakeAlong) and _picks(b.original or op, made):
            return picked_parts(b, op)
        parts = PARTS.get(type(op))
        return parts(b, op) if parts else None

    return rewrite_graph(graph, rule)


def _picks(op: Any, made: set[Value]) -> bool:
    """Whether a look-up takes one number of each row that a product makes, at a place that does not
    depend on one."""
    x, ids = op.x.type, op.ids.type
    assert isinstance(x, TensorType) and isinstance(ids, TensorType)
    given = op.x in made and op.ids not in made
    return given and x.dtype.is_float and ids.shape[op.axis].constant == 1
