"""Logarithms of exponentials: what a probability's logarithm is without the probability."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.reorder.along import LoopAnalysis, repeated, stream_type
from tilewright.passes.rewrite import Rewriter, rewrite_graph

INVERSE: dict[type[Op], type[Op]] = {m.Log: m.Exp, m.Log2: m.Exp2}


def logarithm(graph: Graph) -> Graph:
    """log(exp x) -> x; log(exp(x) * c) -> x + log c and log(exp(x) / c) -> x - log c with c
    constant along the loop. Where exp(x) would round to 0 the result stays finite."""
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        inverse = INVERSE.get(type(op))
        if inverse is None or not stream_type(op.results[0]).loops:
            return None
        return _of_product(b, op, inverse, loops)

    return rewrite_graph(graph, rule)


def _of_product(b: Rewriter, op: Op, inverse: type[Op], loops: LoopAnalysis) -> Value | None:
    hint = op.results[0].hint
    inside = b.producer(op.operands[0])
    if isinstance(inside, inverse):
        return inside.operands[0]
    if not isinstance(inside, m.Mul | m.Div):
        return None
    along = loops.along(b.made_by, stream_type(op.results[0]).loops[-1].name)
    x, c = inside.lhs, inside.rhs
    if isinstance(inside, m.Mul) and b.producer(x, inverse) is None:
        x, c = c, x
    exponential, factor = b.producer(x, inverse), along.constant(c)
    if exponential is None or factor is None:
        return None
    log = repeated(b, b(type(op), factor, hint=f"{hint}_of"), x)
    return b(m.Add if isinstance(inside, m.Mul) else m.Sub, exponential.operands[0], log, hint=hint)
