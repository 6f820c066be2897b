"""A graph for known values of some size names: the names become numbers everywhere."""

from __future__ import annotations

from typing import Any

from tilewright.ir.core import Graph, Op, Region, Value
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

_TYPES = (TensorType, StreamType, BufferType, ScratchType, RegisterType, IndexType)


def specialise(graph: Graph, values: dict[str, int]) -> Graph:
    """The graph with size names replaced by numbers; itself if there are none."""
    if not values:
        return graph
    sizes: dict[str, Any] = dict(values)
    mapping: dict[Value, Value] = {}
    params = []
    for param in graph.params:
        mapping[param] = Value(substitute_sizes(param.type, sizes), param.hint)
        params.append(mapping[param])
    ops: list[Op] = []
    for op in graph.body.ops:
        attrs = {k: _substituted(v, sizes) for k, v in op.attrs.items()}
        hints = [r.hint for r in op.results]
        fresh = type(op)(*(mapping[v] for v in op.operands), loc=op.loc, hints=hints, **attrs)
        mapping.update(zip(op.results, fresh.results, strict=True))
        ops.append(fresh)
    body = Region(tuple(params), tuple(ops), tuple(mapping[v] for v in graph.results))
    left = tuple(n for n in graph.sizes if n not in values)
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
