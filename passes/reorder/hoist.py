"""What is constant along a loop is computed outside of it."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.reorder.along import LoopAnalysis, stream_type
from tilewright.passes.rewrite import Rewriter, rewrite_graph


def hoist(graph: Graph) -> Graph:
    """f(repeat x, repeat y) -> repeat f(x, y); max_j (x_j + c) -> (max_j x_j) + c where c waits
    for the loop itself, and the same for a minimum."""
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        if isinstance(op, s.Reduce) and op.kind != "sum":
            return _shifted_extremum(b, op, loops)
        return _before_repeating(b, op)

    return rewrite_graph(graph, rule)


def _before_repeating(b: Rewriter, op: Op) -> Value | None:
    maps = "pointwise" in op.traits or isinstance(op, s.Contract | s.Fold)
    if not maps or not op.operands or not stream_type(op.results[0]).loops:
        return None
    made = [b.producer(v) for v in op.operands]
    repeats = [r for r in made if isinstance(r, s.Repeat)]
    plain = [v for v in op.operands if not stream_type(v).loops]
    if not repeats or len(repeats) + len(plain) != len(op.operands):
        return None
    once = [r.x if isinstance(r, s.Repeat) else v for r, v in zip(made, op.operands, strict=True)]
    hint = op.results[0].hint
    return b(s.Repeat, b(type(op), *once, hint=hint, **op.attrs), axis=repeats[0].axis, hint=hint)


def _shifted_extremum(b: Rewriter, op: s.Reduce, loops: LoopAnalysis) -> Value | None:
    """An early constant stays inside: moving it would change nothing about who waits."""
    along = loops.along(b.made_by, op.axis)
    shifted = b.producer(op.x)
    if not isinstance(shifted, m.Add | m.Sub):
        return None
    x, c = shifted.lhs, shifted.rhs
    if isinstance(shifted, m.Add) and along.constant(x) is not None:
        x, c = c, x
    shift = along.constant(c)
    if shift is None or not along.late(c) or along.late(x):
        return None
    top = b(s.Reduce, x, kind=op.kind, axis=op.axis, hint=op.result.hint)
    return b(type(shifted), top, shift, hint=op.result.hint)
