"""Rebuilding a graph operation by operation; the machinery below every rewriting pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tilewright.ir.core import Builder, Graph, Module, Op, Region, Value
from tilewright.ir.ops_math import Const
from tilewright.ir.sizes import Size
from tilewright.ir.types import StreamType, TensorType, Type

Rule = Callable[["Rewriter", Op], Sequence[Value] | Value | None]


class Rewriter(Builder):
    """A builder that knows which op made each value it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: dict[Value, Op] = {}
        self.original: Op | None = None  # the op being rewritten, as it stands in the old graph

    def add(self, op: Op) -> Op:
        for result in op.results:
            self.made_by[result] = op
        return super().add(op)

    def producer(self, value: Value, cls: type[Op] | None = None) -> Op | None:
        """The op that made ``value`` if it is of class ``cls``."""
        op = self.made_by.get(value)
        return op if op is not None and (cls is None or isinstance(op, cls)) else None

    def constant(self, value: Value) -> Any | None:
        """The number if ``value`` is a constant."""
        op = self.producer(value, Const)
        return op.attrs["value"] if op is not None else None

    def const(self, number: float, type_: Type, hint: str = "c") -> Value:
        return self(Const, value=number, type=type_, hint=hint)


def rewrite_graph(graph: Graph, rule: Rule) -> Graph:
    """Every op once, in order, its operands already rewritten; ``rule`` gives a replacement for its
    results or None to keep it."""
    return graph.with_body(_rewrite_region(graph.body, {}, rule, {}))


def _rewrite_region(
    region: Region, mapping: dict[Value, Value], rule: Rule, made_by: dict[Value, Op]
) -> Region:
    """The region rewritten; itself if nothing changed, so that what uses it is not made anew."""
    outside = len(made_by)
    inner = Rewriter()
    inner.made_by = made_by
    for op in region.ops:
        operands = [mapping.get(v, v) for v in op.operands]
        regions = [_rewrite_region(r, mapping, rule, made_by) for r in op.regions]
        same = _are(operands, op.operands) and _are(regions, op.regions)
        fresh = op if same else op.rebuilt(operands, regions or None)
        inner.loc, inner.original = op.loc, op
        given = rule(inner, fresh)
        if given is None:
            inner.add(fresh)
            given = fresh.results
        elif isinstance(given, Value):
            given = (given,)
        mapping.update(zip(op.results, given, strict=True))
    yields = tuple(mapping.get(v, v) for v in region.yields)
    while len(made_by) > outside:  # what a region makes is not seen after it
        made_by.popitem()
    if _are(inner.ops, region.ops) and _are(yields, region.yields):
        return region
    return Region(region.params, tuple(inner.ops), yields)


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether these are the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def for_each_graph(module: Module, change: Callable[[Graph], Graph], level: str = "") -> Module:
    """Applies ``change`` to every graph (of one level)."""
    return Module(tuple(change(g) if not level or g.level == level else g for g in module.graphs))


def sizes_in(ops: Iterable[Op]) -> set[str]:
    """The names of sizes that occur in what operations take, give and ask for."""
    found: set[Size] = set()
    for op in ops:
        for type_ in (v.type for v in (*op.operands, *op.results)):
            if isinstance(type_, TensorType):
                found.update(type_.shape)
            elif isinstance(type_, StreamType):
                found.update(a.size for a in type_.axes)
        found.update(v for v in op.attrs.values() if isinstance(v, Size))
    return {name for size in found for name in size.names}


def rebuilt_body(
    graph: Graph, mapping: dict[Value, Value], attrs_of: Callable[[Op], dict[str, Any]]
) -> Region:
    """The body with other attributes, of a graph without regions: every operation is made, and
    checks itself, when its operands and attributes both have changed. ``mapping``: the parameters'
    new values, to which all others are added."""
    ops: list[Op] = []
    for op in graph.body.ops:
        hints = [r.hint for r in op.results]
        fresh = type(op)(
            *(mapping[v] for v in op.operands), loc=op.loc, hints=hints, **attrs_of(op)
        )
        mapping.update(zip(op.results, fresh.results, strict=True))
        ops.append(fresh)
    params, results = (tuple(mapping[v] for v in x) for x in (graph.params, graph.results))
    return Region(params, tuple(ops), results)
