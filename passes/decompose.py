"""Composite operations into their parts, so that no later pass knows them.

``%p = tensor.softmax %x {axis = 1}``  ->  maximum, difference, exponential, sum, quotient
"""

from __future__ import annotations

import math
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Module, Op, Value
from tilewright.ir.dtypes import F32
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


PARTS = {t.Softmax: softmax_parts, m.Sigmoid: sigmoid_parts}


def decompose(module: Module) -> Module:
    """Replaces composite tensor operations by their parts."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        parts = PARTS.get(type(op))
        return parts(b, op) if parts else None

    return for_each_graph(module, lambda g: rewrite_graph(g, rule), "graph")
