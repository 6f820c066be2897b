"""Maxima and minima that are NaN where one of their numbers is, as in torch and NumPy.

Machines' own maxima let the other number through, and so do kernels, which compare:

    max(x)   ->   max(x) + sum(select(x != x, NaN, 0))

Nothing else changes: the sum is 0 or NaN, in the same pass over x. Where exponentials are taken of
differences from a maximum (softmax, its logarithm) a NaN is among those anyway, and nothing is
added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph


def extremes(module: Module) -> Module:
    """The rule on every tensor graph."""
    return for_each_graph(module, _with_nan, "graph")


def _with_nan(graph: Graph) -> Graph:
    uses = graph.uses()

    def rule(b: Rewriter, op: Op) -> Value | None:
        if not isinstance(op, t.Reduce) or op.kind == "sum":
            return None
        type_, original = op.x.type, b.original or op
        assert isinstance(type_, TensorType)
        if not type_.dtype.is_float or _exponentials(original.results[0], uses):
            return None
        marks = _marks(b, op.x, type_)
        mark = b(t.Reduce, marks, kind="sum", axis=op.axis, keep=op.keep, hint="mark")
        found = b(t.Reduce, op.x, hint=op.result.hint, **op.attrs)
        return b(m.Add, found, mark, hint=op.result.hint)

    return rewrite_graph(graph, rule)


def _marks(b: Rewriter, x: Value, type_: TensorType) -> Value:
    """NaN where x is, else 0. What a mask hides stays hidden by it, so that whole blocks are left
    out as before."""
    scalar = TensorType((), type_.dtype)
    none = b.const(0.0, scalar)
    masked = b.producer(x, m.Select)
    hidden = masked is not None and b.constant(masked.operands[2]) in (-math.inf, math.inf)
    seen = masked.operands[1] if masked is not None and hidden else x
    unequal = b(m.Compare, seen, seen, relation="ne", hint="unequal")
    marks = b(m.Select, unequal, b.const(math.nan, scalar), none, hint="marks")
    if masked is None or not hidden:
        return marks
    return b(m.Select, masked.operands[0], marks, none, hint="marks")


def _exponentials(value: Value, uses: Mapping[Value, Sequence[Op]]) -> bool:
    """Whether an exponential is taken of something that depends on a value."""
    waiting, seen = [value], {value}
    while waiting:
        for user in uses.get(waiting.pop(), ()):
            if isinstance(user, m.Exp | m.Exp2):
                return True
            fresh = [x for x in user.results if x not in seen]
            waiting += fresh
            seen.update(fresh)
    return False
