"""Tiles put side by side in few bits: half the bytes go through shared memory on their way to a
product, whose layout Triton makes there."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.types import RegisterType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.rewrite import Rewriter, rewrite_graph


def narrowed_first(graph: Graph) -> Graph:
    """The program with tiles cast to fewer bits before they are put in turn, instead of after."""
    if not any(isinstance(op, t.Interleave) for op in graph.body.walk()):
        return graph
    return canonicalise_graph(rewrite_graph(graph, _rule))


def _rule(r: Rewriter, op: Op) -> Value | None:
    if not isinstance(op, m.Cast):
        return None
    together = r.producer(op.x, t.Interleave)
    if not isinstance(together, t.Interleave) or not isinstance(op.x.type, RegisterType):
        return None
    if op.dtype.bits >= op.x.type.dtype.bits:
        return None
    parts = [r(m.Cast, part, dtype=op.dtype, hint=part.hint) for part in together.parts]
    return r(t.Interleave, *parts, dim=together.dim, hint=op.result.hint)
