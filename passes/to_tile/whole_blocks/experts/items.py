"""What a work item of a grouped product takes: a block of the plan's rows, and their rows of x."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.emitter import TileBuilder


def block_of_rows(b: TileBuilder, plan: Value) -> tuple[Value, Value, Value]:
    """The expert of a work item's block, its first row and the one past its last: of the plan's
    blocks i32 [R, 3]."""
    number = b(t.BlockId, dim=0, hint="number")
    expert, first, last = (
        b(t.Read, plan, number, b.index(i), hint=hint)
        for i, hint in enumerate(("expert", "first", "last"))
    )
    return expert, first, last


def rows_of_x(
    b: TileBuilder, tokens: Value | None, first: Value, last: Value, layout: Layout
) -> Value:
    """Rows of x, i64 in a column or a row of ``layout``: those of ``tokens``, if x is not sorted.
    Those past the last are some row that is there."""
    dim = 0 if layout.shape[0] > 1 else 1
    if tokens is not None:
        found = b.load(tokens, [first], (dim,), layout, [(dim, "zero", last)], hint="token")
        return b(m.Cast, found, dtype=I64, hint="row")
    here = b.positions_along(dim, layout, first, I64, "row")
    return b(m.Min, here, b.splat(b.sub(last, 1)), hint="row")
