"""How sums depend on exponentials: which are homogeneous in them, and of what degree.

A sum of degree k in e is multiplied by f**k when every e is multiplied by f. That is all that
rescaling needs to know of its terms: e * v has degree 1, e * e degree 2, e + v none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.reorder.along import Made, is_float, stream_type, wait_levels
from tilewright.passes.rewrite import Rewriter, rewrite_graph

Degree = Mapping[Value, int]  # of each exponential; those that do not occur are left out
NONE: Degree = {}


@dataclass(frozen=True)
class Linear:
    """The sums that are homogeneous in some exponentials, and the values on the way to them."""

    sums: Mapping[s.Reduce, Degree]
    degrees: Mapping[Value, Degree]

    @property
    def used(self) -> set[Value]:
        """The exponentials that occur in a sum."""
        return {e for degree in self.sums.values() for e in degree}


def find_linear(graph: Graph, wanted: Mapping[Value, int]) -> Linear:
    """Sums along the exponentials' innermost loop, of terms that wait for nothing else.

    ``wanted``: the exponentials, with the number of loops that they will wait for. What one is
    used for besides is left alone: there it keeps waiting for its own loop, too. A sum of terms
    that wait longer would need its exponentials in memory, relative to which maximum?
    """
    made, waits = graph.producers(), wait_levels(graph)
    degrees: dict[Value, Degree] = {}
    broken: set[Value] = set()  # depends on an exponential, but not homogeneously
    sums: dict[s.Reduce, Degree] = {}
    for op in graph.body.ops:
        given = [degrees.get(v, NONE) for v in op.operands]
        if any(v in broken for v in op.operands):
            broken.update(op.results)
        elif isinstance(op, s.Reduce) and given[0]:
            loops = {stream_type(e).loops for e in given[0]}
            along = op.kind == "sum" and not op.rescale and loops == {stream_type(op.x).loops}
            if along and {wanted[e] for e in given[0]} == {waits[op.x]}:
                sums[op] = given[0]
        elif any(given):
            found = _of_map(op, given, made)
            if found is None:
                broken.update(op.results)
            else:
                degrees[op.results[0]] = found
                waits[op.results[0]] = max(waits[v] for v in op.operands)
        for result in op.results:
            if result in wanted:
                degrees[result], waits[result] = {result: 1}, wanted[result]
    return Linear(sums, degrees)


Twin = Callable[[Rewriter, Op, Value], Value]
Total = Callable[[Rewriter, s.Reduce, Value], Value]


def rebuild_sums(graph: Graph, linear: Linear, exponential: Twin, total: Total) -> Graph:
    """The graph with every sum over its exponentials formed anew.

    ``exponential(b, op, e)`` gives what stands for the exponential ``e`` of the old graph in sums;
    ``total(b, old, x)`` is the sum over terms ``x`` that replaces ``old``.
    """
    used = linear.used
    twins: dict[Value, Value] = {}

    def rule(b: Rewriter, op: Op) -> Value | None:
        old = b.original
        assert old is not None
        operands = [twins.get(v, new) for v, new in zip(old.operands, op.operands, strict=True)]
        if isinstance(old, s.Reduce) and old in linear.sums:
            return total(b, old, operands[0])
        if len(old.results) == 1:
            (result,) = old.results
            if result in used:
                twins[result] = exponential(b, op, result)
            elif used.intersection(linear.degrees.get(result, NONE)):
                twins[result] = b(type(op), *operands, hint=result.hint, **op.attrs)
        return None

    return rewrite_graph(graph, rule) if used else graph


def _of_map(op: Op, given: list[Degree], made: Made) -> Degree | None:
    """The degree of a map's result; None if it is not homogeneous."""
    if len(op.results) != 1 or not is_float(op.results[0]):
        return None
    if isinstance(op, m.Mul | s.Contract):
        return {e: given[0].get(e, 0) + given[1].get(e, 0) for e in {**given[0], **given[1]}}
    if isinstance(op, m.Div):
        return given[0] if not given[1] else None
    if isinstance(op, m.Neg | m.Cast) or (isinstance(op, s.Fold) and op.kind == "sum"):
        return given[0]
    if isinstance(op, m.Add | m.Sub):
        return _of_sum(op.operands, given, made)
    if isinstance(op, m.Select) and not given[0]:
        return _of_sum(op.operands[1:], given[1:], made)
    return None


def _of_sum(values: tuple[Value, ...], given: list[Degree], made: Made) -> Degree | None:
    """Zero has every degree."""
    degrees = [d for v, d in zip(values, given, strict=True) if not _is_zero(made.get(v))]
    return degrees[0] if degrees and all(d == degrees[0] for d in degrees) else None


def _is_zero(op: Op | None) -> bool:
    return isinstance(op, m.Const) and op.value == 0
