"""Kernels that compute each row by itself, such as a normalisation: the row's elements lie on
lanes.

Each reduction over the element's axis is one walk over the row, the results another; a row is small
enough to stay in the nearest caches between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph
from tilewright.passes.to_tile.folds import fold_all
from tilewright.passes.to_tile.kernel_info import is_routing, is_row_kernel
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.single_row import with_a_loop
from tilewright.passes.to_tile.state import LoweringState


def any_length(graph: Graph) -> bool:
    """True if one program on a CPU takes rows of every length: it walks along them and nothing
    else, so that no loop over an element is written out."""
    if not is_row_kernel(graph) or is_routing(with_a_loop(graph)):
        return False
    return not any(isinstance(op, s.Roll) for op in graph.body.ops)


def lower_row_kernel(state: LoweringState, rows: RowLowering, sinks: Sequence[s.Sink]) -> None:
    """The program of one block of rows."""
    b = state.build
    block = b(t.BlockId, dim=0, hint="row_block")
    state.first_row = b.mul(block, state.schedule.rows)
    state.row_total = b.size(state.info.row_count)
    count = b.minimum(b.sub(state.row_total, state.first_row), state.schedule.rows)
    folds = [op for op in state.info.graph.body.ops if isinstance(op, s.Fold)]
    with rows.each_row(count, clamp=False) as (row, at):
        rows.folded = fold_all(state, rows, folds, at)
        for sink in sinks:
            rows.write(sink, row, at)
