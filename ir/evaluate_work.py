"""How much the interpreter has to do for a stream graph, from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.ops_stream import Contract, Gather, Repeat
from tilewright.ir.types import Axis, StreamType

PRODUCTS = 1000.0  # multiply-adds of a product of matrices in the time of one place of a map

Names = frozenset[str]


def places(graph: Graph, sizes: Mapping[str, int]) -> float:
    """Places that evaluating a stream graph computes, over all its ops: memory (eight bytes each)
    and time go with them. What a stream only repeats is computed once (``evaluate.once``)."""
    varies: dict[Value, Names] = {}
    total = 0.0
    for op in graph.body.ops:
        streams = [v for v in (*op.operands, *op.results) if _axes(v)]
        lengths = {a.name: a.size.evaluate(sizes) for v in streams for a in _axes(v)}
        over = _varying(op, varies)
        varies |= {v: over for v in op.results}
        if isinstance(op, Contract):
            products = _product(lengths, varies[op.lhs] | varies[op.rhs])
            total += _product(lengths, over) + products / PRODUCTS
        elif _is_view(op) or "pointwise" in op.traits:
            total += _product(lengths, over)
        else:  # reads every place of its operands
            total += max(
                (_product(lengths, {a.name for a in _axes(v)}) for v in streams), default=0
            )
    return total


def _varying(op: Op, known: Mapping[Value, Names]) -> Names:
    """The axes along which an op's result can differ."""
    if isinstance(op, Contract):
        return (known[op.lhs] | known[op.rhs]) - set(op.axes)
    if isinstance(op, Repeat) or "pointwise" in op.traits:
        return Names().union(*(known.get(v, Names()) for v in op.operands))
    if _is_view(op):
        return Names(axis for dim in op.dims for axis in dim)  # type: ignore[attr-defined]
    return Names(a.name for v in op.results for a in _axes(v))


def _is_view(op: Op) -> bool:
    """Whether it repeats another stream, or a tensor that it reads (or decodes) over the axes of
    its ``dims``."""
    reads = hasattr(op, "dims") and not isinstance(op, Gather)
    return isinstance(op, Repeat) or (reads and not any(_axes(v) for v in op.operands))


def _axes(value: Value) -> tuple[Axis, ...]:
    return value.type.axes if isinstance(value.type, StreamType) else ()


def _product(lengths: Mapping[str, int], names: Iterable[str]) -> float:
    return float(math.prod(lengths[n] for n in names))
