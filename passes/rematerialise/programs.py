"""What a program with keys or values of its own costs: made once through memory, or in its loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.sizes import product
from tilewright.ir.types import TensorType
from tilewright.passes.inner_products import Inner, made_again
from tilewright.passes.rematerialise.absorb import work
from tilewright.passes.rematerialise.cost import Cost
from tilewright.passes.rematerialise.fuse import Fused, fuse


def inside(graph: Graph, inner: Inner, sizes: Mapping[str, int], item_rows: int) -> Fused:
    """The program with its products along the positions made again in its loop; values are weighed
    before they are projected where that is cheaper for these sizes."""
    if inner.tokens is None:
        along = [op for op in inner.along if op.results[0] not in graph.results]
        return Fused(made_again(graph, along), (None,) * len(graph.results))
    some = {name: max(size, 1) for name, size in sizes.items()}  # of nothing, all orders cost 0
    return fuse(graph, inner.tokens, some, item_rows, inner.along)


def cost_through_memory(graph: Graph, inner: Inner, sizes: Mapping[str, int]) -> Cost:
    """Products once, written and read."""
    made = sum(_bytes(op.results[0], sizes) for op in inner.along)
    read = sum(_bytes(v, sizes) for v in _inputs(inner.along))
    return Cost(_work(graph, sizes, 1), read + 2 * made, steps=True)


def cost_inside(fused: Fused, inner: Inner, sizes: Mapping[str, int], item_rows: int) -> Cost:
    """Products again for every ``item_rows`` rows, which read their input."""
    times = -(-max(inner.rows.evaluate(dict(sizes)), 1) // item_rows)
    items = max(inner.grid.evaluate(dict(sizes)), 1) * times
    again = [op for op in fused.graph.body.ops if isinstance(op, Remake)]
    read = sum(_bytes(v, sizes) for v in _inputs(again))
    return Cost(_work(fused.graph, sizes, times), read * items, items=items)


def _inputs(ops: Collection[Op]) -> set[Value]:
    return {v for op in ops for v in op.operands}


def _work(graph: Graph, sizes: Mapping[str, int], times: int) -> float:
    products = [op for op in graph.body.ops if isinstance(op, Contract)]
    return sum(work(op, sizes) * (times if isinstance(op, Remake) else 1) for op in products)


def _bytes(value: Value, sizes: Mapping[str, int]) -> float:
    assert isinstance(value.type, TensorType)
    numbers = product(value.type.shape).evaluate(dict(sizes))
    return float(numbers * value.type.dtype.bits / 8)
