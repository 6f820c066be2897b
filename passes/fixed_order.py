"""Tile programs whose bits do not depend on who runs them: every rounding is written down.

    math.fma x, y, z              -> math.fma {fused = true}: one rounding everywhere
    tile.dot acc, a, b            -> tile.dot {fused = true}
    math.fraction x               -> math.fraction {down = true}, as AVX-512 rounds it
    tile.reduce x                 -> tile.reduce {halves = true}, or none where nothing is summed

What is left is arithmetic of IEEE 754 (sums, products, quotients, roots, conversions: rounded once,
to nearest even, subnormal numbers too), integers, and memory. Anything else is refused: a function
of the C library, an instruction with an order of its own.
"""

from __future__ import annotations

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Attr, Graph, Op, Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.rounding import FIXED, ORDER
from tilewright.ir.types import IndexType, RegisterType
from tilewright.passes.rewrite import Rewriter, rewrite_graph

ELSEWHERE = (m.Exp, m.Exp2, m.Log, m.Log2, m.Tanh, m.Erf, m.Rsqrt, m.Sigmoid, m.Pow)  # functions
CROSSING = (t.PairDot, t.ReduceToLanes, t.Scan)  # sums in an order of their own


def fix_order(graph: Graph) -> Graph:
    """The program with every rounding written down. Raises UnsupportedError naming the operation
    that has none."""
    for op in graph.body.walk():
        _check(graph, op)
    changed = same_on_all_widths(graph)
    attrs = {**graph.attrs, ORDER: FIXED}
    return Graph(graph.level, graph.name, graph.sizes, changed.body, attrs)


def same_on_all_widths(graph: Graph) -> Graph:
    """The program with those roundings written down that depend on the width of vectors."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        if isinstance(op, m.Fma | t.Dot) and _is_f32(op.result):
            return None if _pairs(op) else _with(b, op, fused=True)
        if isinstance(op, t.Reduce) and _is_float(op.x):
            return _with(b, op, halves=True)
        if isinstance(op, m.Fraction) and _is_f32(op.result):
            return _with(b, op, down=True)
        if isinstance(op, m.Const) and _is_float(op.result):
            dtype = getattr(op.type, "dtype", F32)
            rounded = float(dtype.round(np.float64(op.value)))  # not by each compiler's reader
            return _with(b, op, value=rounded) if rounded != op.value else None
        return None

    return rewrite_graph(graph, rule)


def _pairs(op: Op) -> bool:
    """Whether an instruction multiplies several numbers of a lane."""
    return isinstance(op, t.Dot) and _width(op.a) != 1


def _width(value: Value) -> int:
    assert isinstance(value.type, RegisterType)
    return value.type.shape[-1]


def _with(b: Rewriter, op: Op, **changed: Attr) -> Value:
    """The same operation with other attributes."""
    attrs = {**op.attrs, **changed}
    return b(type(op), *op.operands, hint=op.result.hint, **attrs)


def _check(graph: Graph, op: Op) -> None:
    """Raises UnsupportedError for what no two back ends round alike."""
    found = next((v.type for v in op.results), None)
    if isinstance(found, IndexType) or not _floats(op):
        return
    narrow = isinstance(op, m.Fma | t.Dot) and not _is_f32(op.results[0])
    if isinstance(op, ELSEWHERE + CROSSING) or narrow:
        raise UnsupportedError(
            f"{graph.name}: {op.name} of {found} has no fixed order of operations", op.loc
        )
    if isinstance(op, t.Dot) and _pairs(op):
        raise UnsupportedError(f"{graph.name}: {op.name} of pairs has no fixed order", op.loc)


def _floats(op: Op) -> bool:
    return any(_is_float(v) for v in (*op.operands, *op.results))


def _is_float(value: Value) -> bool:
    dtype = getattr(value.type, "dtype", I32)
    return isinstance(value.type, RegisterType) and dtype.is_float


def _is_f32(value: Value) -> bool:
    return isinstance(value.type, RegisterType) and value.type.dtype == F32
