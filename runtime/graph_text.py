"""The text of a graph as keys of caches need it: equal work has equal text."""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.core import Graph
from tilewright.ir.dtypes import DType
from tilewright.passes.specialise import specialise


def anonymous(graph: Graph) -> Graph:
    """The graph without the names of its values: equal work has equal text."""
    plain = specialise(graph, {"": 0})
    for value in (*plain.params, *(r for op in plain.body.ops for r in op.results)):
        value.hint = ""
    return replace(plain, name="kernel")


def table_dtypes(graph: Graph) -> tuple[DType, ...]:
    """The user's own dtypes in a graph, of which its text has only the names."""
    kinds = (a for op in graph.body.walk() for a in op.attrs.values() if isinstance(a, DType))
    return tuple(d for d in dict.fromkeys(kinds) if d.table)


def table_text(graph: Graph) -> str:
    """What the codes of the user's own dtypes stand for, which their names do not tell."""
    return "".join(f", {d} {d.table}" for d in table_dtypes(graph))
