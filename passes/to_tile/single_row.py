"""Kernels of one row, whose other dimensions are 1, as kernels of many rows whose number is 1.

Without a loop they would be programs of routing, whose sums are formed number by number. So a row
alone takes the vectors that many rows take, and its sums come in their order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tilewright.ir.core import Graph, Op
from tilewright.ir.ops_stream import Sink, Source, StreamOp
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.rewrite import rebuilt_body
from tilewright.passes.to_tile.kernel_info import chooses, is_row_kernel

ONE = Size.of(1)


def with_a_loop(graph: Graph) -> Graph:
    """The kernel with a loop of one turn; itself if it has loops, or is none of rows."""
    types = [v.type for op in graph.body.ops for v in op.results]
    loops = any(isinstance(x, StreamType) and x.loops for x in types)
    sinks = [op for op in graph.body.ops if isinstance(op, Sink)]
    if loops or chooses(graph) or not is_row_kernel(graph) or not all(map(_unit_dim, sinks)):
        return graph
    used = {a.name for x in types if isinstance(x, StreamType) for a in x.element}
    row = Axis(next(n for n in map("row{}".format, range(len(used) + 1)) if n not in used), ONE)

    def attrs_of(op: Op) -> dict[str, Any]:
        attrs, kind = dict(op.attrs), op.attrs.get("type")
        if isinstance(op, Source | Sink) and (at := _unit_dim(op)):
            attrs["dims"] = tuple((row.name,) if i == at else x for i, x in enumerate(op.dims, 1))
        if isinstance(op, StreamOp) and isinstance(kind, StreamType):
            attrs["type"] = replace(kind, loops=(row,))
        return attrs

    return graph.with_body(rebuilt_body(graph, {p: p for p in graph.params}, attrs_of))


def _unit_dim(op: Op) -> int:
    """The first dimension of a source's or sink's tensor that no axis runs along, from 1; 0: none.
    (Where no axis runs along a dimension its size is 1.)"""
    assert isinstance(op, Source | Sink)
    return next((i for i, dim in enumerate(op.dims, 1) if not dim), 0)
