"""A graph for known values of some size names: the names become numbers (or other names)
everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    Axis,
    BufferType,
    IndexType,
    RegisterType,
    ScratchType,
    StreamType,
    TensorType,
    substitute_sizes,
)
from tilewright.passes.rewrite import rebuilt_body

_TYPES = (TensorType, StreamType, BufferType, ScratchType, RegisterType, IndexType)


def specialise(graph: Graph, values: Mapping[str, int | str]) -> Graph:
    """The graph with size names replaced by numbers, or by names; itself if there are none."""
    if not values:
        return graph
    sizes: dict[str, Any] = dict(values)
    mapping = {p: Value(substitute_sizes(p.type, sizes), p.hint) for p in graph.params}

    def attrs_of(op: Op) -> dict[str, Any]:
        return {k: _substituted(v, sizes) for k, v in op.attrs.items()}

    body = rebuilt_body(graph, mapping, attrs_of)
    left = tuple(n for n in (values.get(n, n) for n in graph.sizes) if isinstance(n, str))
    return Graph(graph.level, graph.name, left, body, graph.attrs)


def _substituted(value: Any, sizes: dict[str, Any]) -> Any:
    if isinstance(value, Size):
        return value.substitute(sizes)
    if isinstance(value, Axis):
        return Axis(value.name, value.size.substitute(sizes))
    if isinstance(value, _TYPES):
        return substitute_sizes(value, sizes)
    if isinstance(value, tuple):
        return tuple(_substituted(v, sizes) for v in value)
    return value
