"""Products of 16-bit floats in f32, and no needless narrowing between them.

torch's products of bf16 and f16 sum in f32 and round once at the end; so does

    %s = tensor.contract %q, %k : bf16   ->   cast to f32, contract, cast to bf16

and so do sums along an axis or into places, and other arithmetic on them. Then a value narrowed and
widened again keeps its f32 form (more precise than asked), unless a product takes it: there the
narrow form lets the dot instruction of 16-bit floats be used. Nor where something is chosen by it:
numbers that rounding made equal are ties, and have to stay so. Nor where the 16 bits are a result:
what is computed from them here and by the caller must agree. Nor where the program itself asks for
both conversions, one right after the other: then it wants what rounding makes of its numbers.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.ops_routing import PrefixSum, Scatter, SortOrder, TopK
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph


def _narrow(value: Value) -> bool:
    assert isinstance(value.type, TensorType)
    return value.type.dtype.is_float and value.type.dtype.bits == 16


def widen_products(b: Rewriter, op: Op) -> Value | None:
    """contract(x, y): 16 bit -> cast(contract(cast x, cast y))"""
    if not isinstance(op, t.Contract) or not _narrow(op.lhs):
        return None
    lhs, rhs = (b(m.Cast, v, dtype=F32, hint=v.hint) for v in op.operands)
    wide = b(type(op), lhs, rhs, equation=op.equation, hint=op.result.hint)
    assert isinstance(op.lhs.type, TensorType)
    return b(m.Cast, wide, dtype=op.lhs.type.dtype, hint=op.result.hint)


def widen_arithmetic(b: Rewriter, op: Op) -> Value | None:
    """f(x, y): 16 bit -> cast(f(cast x, cast y)); conversions, choices and comparisons stay"""
    plain = isinstance(op, m.Pointwise) and not isinstance(op, m.Compare)
    if not plain or not op.operands or not _narrow(op.operands[0]):
        return None
    dtype = getattr(op.operands[0].type, "dtype", F32)
    wide = [b(m.Cast, v, dtype=F32, hint=v.hint) for v in op.operands]
    return b(m.Cast, b(type(op), *wide, hint=op.result.hint, **op.attrs), dtype=dtype)


def widen_sums(b: Rewriter, op: Op) -> Value | None:
    """reduce(x), prefix_sum(x), scatter(x, ids, source) {sum}: 16 bit -> cast(op(cast x, …)): sums
    round once, at the end"""
    added = isinstance(op, Scatter) and op.kind == "sum"
    if not (added or isinstance(op, t.Reduce | PrefixSum)) or not _narrow(op.operands[0]):
        return None
    wide = [b(m.Cast, v, dtype=F32, hint=v.hint) if _narrow(v) else v for v in op.operands]
    total = b(type(op), *wide, hint=op.result.hint, **op.attrs)
    dtype = getattr(op.operands[0].type, "dtype", F32)
    return b(m.Cast, total, dtype=dtype, hint=op.result.hint)


def keep_wide(graph: Graph) -> Graph:
    """cast(cast(x: f32, 16 bit), f32) -> x, unless a product takes it, something is chosen, or the
    program asked for both"""
    if any(isinstance(op, TopK | SortOrder) for op in graph.body.ops):
        return graph
    uses, results = graph.uses(), set(graph.results)

    def rule(b: Rewriter, op: Op) -> Value | None:
        if not isinstance(op, m.Cast) or op.dtype != F32:
            return None
        inner, original = b.producer(op.x, m.Cast), b.original or op
        product = any(isinstance(user, t.Contract) for user in uses.get(original.results[0], []))
        seen = original.operands[0] in results
        wanted = op.asked and inner is not None and inner.attrs["asked"]
        if inner is None or product or seen or wanted or not _narrow(op.x):
            return None
        wide = inner.operands[0]
        assert isinstance(wide.type, TensorType)
        return wide if wide.type.dtype == F32 else None

    return rewrite_graph(graph, rule)


def precision(module: Module) -> Module:
    """All rules on every tensor graph."""

    def widen(graph: Graph) -> Graph:
        for rule in (widen_products, widen_sums, widen_arithmetic):
            graph = rewrite_graph(graph, rule)
        return keep_wide(graph)

    return for_each_graph(module, widen, "graph")
