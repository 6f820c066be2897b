"""Products whose vectors a later product streams: keys, values and queries of one program.

    %k = tensor.contract %x, %wk {"mc,hcd->hmd"}      graph 1: %k_made = %x %wk
    %s = tensor.contract %q, %k {"hnd,hmd->hnm"}  ->  graph 2: %s = tensor.contract %q, %k_made
    ...                                                        ...

A loop over rows and positions would make every key again for each row: %k lacks the rows' axis, and
an element of it is a vector. Cut off before the loop they are made once and lie in memory. Made
again inside of it (``passes/rematerialise``) they need none; which is cheaper depends on the sizes
of a call. What is made from an input in codes is always made again: codes are unpacked in loops
over their tokens only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from types import UnionType

from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.ops_cache import CachedTensor
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_tensor import Contract, Reduce, Softmax
from tilewright.ir.sizes import Size, product
from tilewright.passes.axes import find_axes
from tilewright.passes.loop_order import choose_order, reduced_axes
from tilewright.passes.rewrite import Rewriter, rewrite_graph
from tilewright.passes.split_sums import reading


@dataclass(frozen=True)
class Inner:
    """Products of inputs that a loop over rows and positions reads: ``along`` the positions (keys
    and values) and ``beside`` them (queries). ``coded``: those of ``along`` made from codes.

    ``tokens`` is the number of positions, None if another axis has the same; ``rows`` that of the
    rows that share what lies along, ``grid`` how often there are other rows (batch, heads).
    """

    along: tuple[Op, ...]
    beside: tuple[Op, ...]
    coded: tuple[Op, ...]
    tokens: Size | None
    rows: Size
    grid: Size


def inner_products(graph: Graph) -> Inner | None:
    """The products of a tensor graph whose vectors another one streams; None if it has none."""
    read = _read_by(graph, Contract)
    first = [op for op in _of_inputs(graph, Contract) if op.results[0] in read]
    if not first:
        return None
    assumed = made_again(graph, first)
    axes = find_axes(assumed)
    order = choose_order(axes)
    if order.streamed is None:
        return None
    loops = {*order.parallel, order.streamed}
    found: dict[bool, list[Op]] = {True: [], False: []}
    for op in first:
        same = assumed.body.ops[graph.body.ops.index(op)]
        own = axes.flat(axes.dims[same.results[0]])
        vectors = own & order.element and loops - own
        if vectors and order.streamed not in reduced_axes(axes, same):
            found[order.streamed in own].append(op)
    along, beside = tuple(found[True]), tuple(found[False])
    if not along and not beside:
        return None
    coded = tuple(op for op in along if _from_codes(graph, op))
    dims = [axes.dims[assumed.body.ops[graph.body.ops.index(op)].results[0]] for op in along]
    shared = frozenset().union(*map(axes.flat, dims))
    rows, grid = (
        product(axes.size[x] for x in order.parallel if (x in shared) == share)
        for share in (False, True)
    )
    tokens = axes.size[order.streamed]
    every = frozenset().union(*map(axes.flat, axes.dims.values())) - {order.streamed}
    alone = all(axes.size[x] != tokens for x in every)
    return Inner(along, beside, coded, tokens if alone else None, rows, grid)


def _of_inputs(graph: Graph, kinds: UnionType | type[Op]) -> list[Op]:
    """Operations of some kinds that need no product and no reduction."""
    late: set[Value] = set()
    found: list[Op] = []
    for op in graph.body.ops:
        after = any(v in late for v in op.operands)
        if isinstance(op, kinds) and not isinstance(op, Remake) and not after:
            found.append(op)
        if after or isinstance(op, Contract | Reduce | Softmax):
            late.update(op.results)
    return found


def reductions_of_inputs(graph: Graph) -> list[Op]:
    """Reductions that need no other one and no product, and that others are computed from: the
    norms of keys, beside their scores."""
    read = _read_by(graph, Contract | Reduce)
    return [op for op in _of_inputs(graph, Reduce) if op.results[0] in read]


def _read_by(graph: Graph, kinds: UnionType | type[Op]) -> set[Value]:
    """What operations of some kinds are computed from."""
    wanted: set[Value] = set()
    for op in reversed(graph.body.ops):
        if isinstance(op, kinds) or any(v in wanted for v in op.results):
            wanted.update(op.operands)
    return wanted


def _from_codes(graph: Graph, op: Op) -> bool:
    made, seen = graph.producers(), set[Value]()
    stack = list(op.operands)
    while stack:
        value = stack.pop()
        below = made.get(value)
        if isinstance(below, CachedTensor):
            return True
        if below is not None and value not in seen:
            seen.add(value)
            stack.extend(below.operands)
    return False


def made_again(graph: Graph, ops: Collection[Op]) -> Graph:
    """The graph with some of its products made again by their readers; op for op the same else."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        if not isinstance(op, Contract) or b.original not in ops:
            return None
        return b(Remake, *op.operands, equation=op.equation, hint=op.result.hint)

    return rewrite_graph(graph, rule)


def cut_products(graph: Graph, ops: Collection[Op]) -> tuple[Graph, ...]:
    """A graph for each of the products, then the rest, which reads what they give by name. Their
    attribute ``results`` says which results of the whole they have, -1 for none. Empty if a part
    needs a size that nothing it reads has, if one value is two results, or an input is one."""
    names = _names(graph, ops)
    at = {value: i for i, value in enumerate(graph.results)}
    if len(at) < len(graph.results) or any(p in at for p in graph.params):
        return ()
    parts: list[Graph | None] = []
    for op in (x for x in graph.body.ops if x in ops):
        value = op.results[0]
        part = _part(graph, names, (value,), f"{graph.name}_{names[value]}", (at.get(value, -1),))
        parts.append(part)
    kept = tuple(v for v in graph.results if v not in names)
    parts.append(_part(graph, names, kept, graph.name, tuple(at[v] for v in kept)))
    return tuple(p for p in parts if p is not None) if None not in parts else ()


def _names(graph: Graph, ops: Collection[Op]) -> dict[Value, str]:
    """A name in memory for each product, unlike all others."""
    every = [*graph.params, *(v for op in graph.body.ops for v in op.results)]
    taken = {f"{v.hint}{end}" for v in every for end in ("", *(f"_out{i}" for i in range(9)))}
    names: dict[Value, str] = {}
    for op in (x for x in graph.body.ops if x in ops):
        value, number = op.results[0], 1
        name = f"{value.hint}_made"
        while name in taken:
            number += 1
            name = f"{value.hint}_made{number}"
        taken.add(name)
        names[value] = name
    return names


def _part(
    graph: Graph,
    names: dict[Value, str],
    results: tuple[Value, ...],
    name: str,
    positions: tuple[int, ...],
) -> Graph | None:
    """The graph of some results. It reads the products that have names, but for its own."""
    needed: set[Value] = set(results)
    ops: list[Op] = []
    for op in reversed(graph.body.ops):
        value = op.results[0]
        if any(v in needed for v in op.results) and (value not in names or value in results):
            ops.append(op)
            needed.update(op.operands)
    crossing = {v: n for v, n in names.items() if v in needed and v not in results}
    part = reading(graph, ops[::-1], crossing, results, name)
    if part is None:
        return None
    for own, value in zip(part.body.yields, results, strict=True):
        own.hint = names.get(value, own.hint)
    return replace(part, attrs={"results": positions})
