"""Keys and values made again from a layer's input where attention reads them.

    %k = tensor.contract %x, %wk {"bmc,hcd->bhmd"}       %k = tensor.remake %x, %wk {…}
    %r = … rotated by positions …                        %r = … rotated by positions …
    %s = tensor.contract %q, %r {"bhgnd,bhmd->bhgnm"}    %s = tensor.contract %q, %r {…}
    %p = tensor.softmax %s {…}                       ->  %p = tensor.softmax %s {…}
    %v = tensor.contract %x, %wv {"bmc,hce->bhme"}       %o = tensor.contract %p, %x
    %o = tensor.contract %p, %v {"bhgnm,bhme->bhgne"}         {"bhgnm,bmc->bhgnc"}, then times %wv

A product that is made again is made for every block of rows, as it has no memory. Values are not
rotated, so that the order of their products is free: where rows are few, it is cheaper to weigh the
input itself, and to project the sums afterwards ("absorbed").

Source: Tomar et al., "XQuant" (arXiv 2508.10395).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.ops_tensor import Contract, Reduce, Softmax
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalise import drop_dead
from tilewright.passes.inner_products import made_again
from tilewright.passes.rematerialise.absorb import absorbed, replaced


@dataclass(frozen=True)
class Last:
    """A product that is left for the caller: of a result with the input called ``weights``."""

    equation: str
    weights: str


@dataclass(frozen=True)
class Fused:
    """The rewritten graph, and for each of its results what is left to do (None: nothing). It takes
    only the inputs that it reads."""

    graph: Graph
    last: tuple[Last | None, ...]


def fuse(
    graph: Graph,
    tokens: Size,
    sizes: Mapping[str, int],
    item_rows: int,
    among: Collection[Op] | None = None,
) -> Fused:
    """Products of inputs along ``tokens`` (those ``among`` some, None: all) made again by their
    readers, or absorbed where that costs fewer multiply-adds at these sizes; ``item_rows`` rows
    share what a work item makes."""

    def products(graph: Graph) -> set[Op]:
        found = _products_of_inputs(graph, tokens)
        return found if among is None else found & set(among)

    graph = _absorb_values(graph, tokens, sizes, item_rows, products)
    return _without_last(made_again(graph, products(graph)), tokens)


def _along(value: Value, tokens: Size) -> bool:
    assert isinstance(value.type, TensorType)
    return tokens in value.type.shape


def _products_of_inputs(graph: Graph, tokens: Size) -> set[Op]:
    """The products along the tokens that need no other product and are no result."""
    after: set[Value] = set()
    found: set[Op] = set()
    for op in graph.body.ops:
        late = any(v in after for v in op.operands)
        reduces = isinstance(op, Contract | Reduce | Softmax)
        if isinstance(op, Contract) and not late and _along(op.result, tokens):
            found.add(op)
        if late or reduces:
            after.update(op.results)
    return {op for op in found if op.result not in graph.results}


def _absorb_values(
    graph: Graph,
    tokens: Size,
    sizes: Mapping[str, int],
    item_rows: int,
    products: Callable[[Graph], set[Op]],
) -> Graph:
    """Sums over the tokens of products of inputs, in the cheaper order."""
    while True:
        again, made, uses = products(graph), graph.producers(), graph.uses()
        for op in graph.body.ops:
            if not isinstance(op, Contract) or _along(op.result, tokens) or op in again:
                continue
            if not any(made.get(v) in again for v in op.operands):
                continue
            times = -(-_rows(op, made, again, sizes) // item_rows)
            pair = absorbed(op, made, uses, graph, sizes, times)
            if pair is not None:
                graph = replaced(graph, op, pair)
                break
        else:
            return graph


def _rows(op: Contract, made: Mapping[Value, Op], again: set[Op], sizes: Mapping[str, int]) -> int:
    """How many rows share a product: the axes of a sum's result that the product lacks."""
    left, right, out = op.letters()
    shared = left if made.get(op.lhs) in again else right
    extents = op.extents()
    rows = product(extents[letter] for letter in out if letter not in shared)
    return max(rows.evaluate(dict(sizes)), 1)


def _without_last(graph: Graph, tokens: Size) -> Fused:
    """Products of a result with an input cut off: they are no part of a pass over the tokens."""
    made = graph.producers()
    results: list[Value] = []
    last: list[Last | None] = []
    for value in graph.results:
        op = made.get(value)
        cut = _cut(op, graph, made, tokens) if isinstance(op, Contract) else None
        results.append(value if cut is None else cut[0])
        last.append(None if cut is None else cut[1])
    body = drop_dead(graph.with_body(Region(graph.params, graph.body.ops, tuple(results)))).body
    needed = {*results, *(v for op in body.ops for v in op.operands)}
    params = tuple(p for p in graph.params if p in needed)
    return Fused(graph.with_body(Region(params, body.ops, body.yields)), tuple(last))


def _cut(
    op: Contract, graph: Graph, made: Mapping[Value, Op], tokens: Size
) -> tuple[Value, Last] | None:
    left, right, out = op.letters()
    for computed, a, weights, b in ((op.lhs, left, op.rhs, right), (op.rhs, right, op.lhs, left)):
        if computed in made and weights in graph.params and not _along(weights, tokens):
            return computed, Last(f"{a},{b}->{out}", weights.hint)
    return None
