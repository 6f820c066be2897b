"""Cuts a tensor graph before its last reductions, where they run across the rows of all others.

The mean of a loss sums over the rows that everything before it computes independently of each
other: no order of loops serves both. Two graphs do, the second of which reads what the first wrote:

    loss = f(x, w); total = sum_n loss_n   ->   graph 1: loss = f(x, w)    graph 2: sum_n loss_n
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Region, Value
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType, Type
from tilewright.passes.axes import find_axes
from tilewright.passes.canonicalise import drop_dead
from tilewright.passes.specialise import specialise


@dataclass(frozen=True)
class Split:
    """Two graphs, and the positions of their results among those of the whole: -1 for what only
    crosses, which are the first results of the first graph and parameters of the second."""

    first: Graph
    second: Graph
    first_results: tuple[int, ...]
    second_results: tuple[int, ...]


Name = Callable[[Graph, int], str]


def split_sums(graph: Graph, name: Name) -> Split | None:
    """The graph before and from its last reductions on; None if those are the only ones, or need
    a size that nothing they read has.

    ``name(first, at)`` is what the result ``at`` of the first graph is called in memory.
    """
    depth = _depths(graph)
    deepest = max(depth.values(), default=0)
    last = [op for op in graph.body.ops if isinstance(op, t.Reduce) and depth[op.result] == deepest]
    if not last or deepest < 2:
        return None
    last = _across(graph, last, depth)
    if not last:
        return None
    after: set[Value] = set()
    for op in graph.body.ops:
        if op in last or any(v in after for v in op.operands):
            after.update(op.results)
    ops, crossing = _needed(graph, after, depth)
    kept = {v: i for i, v in enumerate(graph.results) if v not in after}
    moved = [i for i, v in enumerate(graph.results) if v in after]
    if len(kept) + len(moved) < len(graph.results):
        return None  # one value is two results
    outs = (*crossing, *(v for v in kept if v not in crossing))
    rows = tuple(op for op in graph.body.ops if not any(r in after for r in op.results))
    first = drop_dead(graph.with_body(Region(graph.params, rows, outs)))
    names = {value: name(first, at) for at, value in enumerate(crossing)}
    name_ = f"{graph.name}_sums"
    second = reading(graph, ops, names, tuple(graph.results[i] for i in moved), name_)
    positions = tuple(kept.get(v, -1) for v in outs)
    return Split(first, second, positions, tuple(moved)) if second is not None else None


def _across(graph: Graph, last: list[t.Reduce], depth: dict[Value, int]) -> list[t.Reduce]:
    """The last reductions, with those beside them along the same axes (of the labels that count);
    none if a reduction of inputs before them runs along one of their axes."""
    axes = find_axes(graph)
    gone: dict[Op, frozenset[int]] = {}
    for op in graph.body.ops:
        if isinstance(op, t.Reduce | t.Contract) and depth[op.result]:
            dims = [axes.views[op, i].dims for i in range(len(op.operands))]
            flat = frozenset().union(*(axes.flat(d) for d in dims))
            gone[op] = flat - axes.flat(axes.dims[op.result])
    across = frozenset().union(*(gone[op] for op in last))
    before = _before(graph, last)
    beside = [op for op in gone if isinstance(op, t.Reduce) and gone[op] <= across]
    found = [op for op in beside if op in last or op.result not in before]
    rows = frozenset().union(*(gone[op] for op in gone if op not in found))
    return [] if across & rows else found


def _before(graph: Graph, last: list[t.Reduce]) -> set[Value]:
    """The values that ops read, at whatever distance."""
    found = {v for op in last for v in op.operands}
    for op in reversed(graph.body.ops):
        if any(r in found for r in op.results):
            found.update(op.operands)
    return found


def reading(
    graph: Graph, ops: list[Op], names: dict[Value, str], results: tuple[Value, ...], name: str
) -> Graph | None:
    """A graph of ``ops`` that reads what has names, and the inputs that it needs; None if it needs
    a size that nothing it reads has."""
    params = {v: Value(v.type, name) for v, name in names.items()}
    params.update({p: Value(p.type, p.hint) for p in graph.params if _takes(ops, p)})
    mapping = dict(params)
    fresh = []
    for op in ops:
        new = op.rebuilt([mapping.get(v, v) for v in op.operands])
        mapping.update(zip(op.results, new.results, strict=True))
        fresh.append(new)
    read = _sizes([p.type for p in params.values()])
    used = read | _sizes([r.type for op in fresh for r in op.results])
    used |= {a for op in fresh for a in op.attrs.values() if isinstance(a, Size)}
    known, wanted = ({n for size in sizes for n in size.names} for sizes in (read, used))
    if not wanted <= known:
        return None
    sizes = tuple(n for n in graph.sizes if n in known)
    body = Region(tuple(params.values()), tuple(fresh), tuple(mapping[v] for v in results))
    return specialise(Graph(graph.level, name, sizes, body), _joined(sizes, used))


def _joined(names: tuple[str, ...], sizes: set[Size]) -> dict[str, int | str]:
    """Names that only occur multiplied with each other, as one name: rows of [b, t] tokens are b*t
    there, and nothing that is read says what b and t are."""
    joined: dict[str, int | str] = {}
    for at, one in enumerate(names):
        others = [n for n in names[at + 1 :] if _together(one, n, sizes)]
        if others and one not in joined:
            joined.update(dict.fromkeys(others, 1))
            name = "_".join((one, *others))
            joined[one] = name if name not in names else f"{name}_"
    return joined


def _together(one: str, other: str, sizes: set[Size]) -> bool:
    monomials = (names for size in sizes for names, _ in size.terms)
    return all(names.count(one) == names.count(other) for names in monomials)


def result_names(module: Module) -> tuple[str, ...]:
    """The names of a program's results, which one stream graph has, or two."""
    names: dict[int, str] = {}
    for graph in module.graphs:
        positions = graph.attrs.get("results", range(len(graph.results)))
        names.update(zip(positions, (v.hint for v in graph.results), strict=True))
    return tuple(names[at] for at in sorted(names) if at >= 0)


def _takes(ops: list[Op], value: Value) -> bool:
    return any(value in op.operands for op in ops)


def _sizes(types: list[Type]) -> set[Size]:
    return {size for x in types if isinstance(x, TensorType) for size in x.shape}


def _depths(graph: Graph) -> dict[Value, int]:
    """How many reductions of inputs each value needs one after another."""
    depth: dict[Value, int] = dict.fromkeys(graph.params, 0)
    from_inputs: set[Value] = set(graph.params)
    for op in graph.body.ops:
        below = max((depth[v] for v in op.operands), default=0)
        read = any(v in from_inputs for v in op.operands)
        for result in op.results:
            depth[result] = below + (read and isinstance(op, t.Reduce | t.Contract))
            if read:
                from_inputs.add(result)
    return depth


def _needed(
    graph: Graph, after: set[Value], depth: dict[Value, int]
) -> tuple[list[Op], list[Value]]:
    """The ops of the second graph, and what they take from the first: what needs a reduction;
    what needs none is computed again."""
    crossing: dict[Value, None] = {}
    wanted: set[Value] = set()
    for op in reversed(graph.body.ops):
        if not any(r in after or r in wanted for r in op.results):
            continue
        for value in op.operands:
            if value in after or value in graph.params:
                continue
            if depth[value]:
                crossing[value] = None
            else:
                wanted.add(value)
    ops = [op for op in graph.body.ops if any(r in after or r in wanted for r in op.results)]
    return ops, list(crossing)
