"""Products with what a kernel has just summed, such as attention's result times one vector.

``stream.contract %sum, %w {axes = ["d"]}``  ->  ``math.mul`` and ``stream.fold`` along ``d``

The contractions of a kernel's loop are formed a block of positions at a time, from row operands
that are packed before the first block. A sum along the loop is there only after the last one, when
the row's results are written: what can be done then is a fold over the row's element.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.reorder.along import LoopAnalysis, stream_type
from tilewright.passes.rewrite import Rewriter, rewrite_graph


def fold_late_products(graph: Graph) -> Graph:
    """Contractions of a row with what was reduced along the kernel's loop, as folds. Raises
    UnsupportedError for those that leave more than one number a row."""
    axes = {op.axis for op in graph.body.ops if isinstance(op, s.Reduce)}
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        if not isinstance(op, s.Contract):
            return None
        if not any(loops.along(b.made_by, a).late(v) for a in axes for v in op.operands):
            return None
        left, right = (stream_type(v).element for v in op.operands)
        if left != right or len(left) != 1 or op.axes != (left[0].name,):
            message = "a product of a matrix with what the same kernel sums; make it another kernel"
            raise UnsupportedError(message, op.loc)
        (axis,) = op.axes
        terms = b(m.Mul, op.lhs, op.rhs, hint=f"{op.result.hint}_term")
        return b(s.Fold, terms, kind="sum", axis=axis, hint=op.result.hint)

    return rewrite_graph(graph, rule) if axes else graph
