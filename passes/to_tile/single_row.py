"""Kernels of one row, whose other dimensions are 1, as kernels of many rows whose number is 1.

Without a loop they would be programs of routing, whose sums are formed number by number. So a row
alone takes the vectors that many rows take, and its sums come in their order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tilewright.ir.core import Graph, Op
from tilewright.ir.ops_stream import Sink, Source, StreamOp
from tilewright.ir.types import StreamType
from tilewright.passes.loop_order import along_unit, row_alone
from tilewright.passes.rewrite import rebuilt_body
from tilewright.passes.to_tile.kernel_info import chooses, is_row_kernel


def with_a_loop(graph: Graph) -> Graph:
    """The kernel with a loop of one turn; itself if it has loops, or is none of rows."""
    types = [v.type for op in graph.body.ops for v in op.results]
    loops = any(isinstance(x, StreamType) and x.loops for x in types)
    sinks = [op for op in graph.body.ops if isinstance(op, Sink)]
    if (
        loops
        or chooses(graph)
        or not is_row_kernel(graph)
        or not all(() in op.dims for op in sinks)
    ):
        return graph
    used = {a.name for x in types if isinstance(x, StreamType) for a in x.element}
    row = row_alone(used)

    def attrs_of(op: Op) -> dict[str, Any]:
        attrs, kind = dict(op.attrs), op.attrs.get("type")
        if isinstance(op, Source | Sink):
            attrs["dims"] = along_unit(op.dims, row)
        if isinstance(op, StreamOp) and isinstance(kind, StreamType):
            attrs["type"] = replace(kind, loops=(row,))
        return attrs

    return graph.with_body(rebuilt_body(graph, {p: p for p in graph.params}, attrs_of))
