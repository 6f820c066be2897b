"""The results of a token's experts added up, in the order in which the router chose them."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.emitter import TileBuilder

VECTORS = 4


def combine_program(chosen: int, width: int, dtype: DType, target: Target) -> Graph:
    """The tile program: y f32 [P, width], places i32 [T, k], starts i32 [S] -> out [T, width] of
    ``dtype``: the sum over k of y[places]. Rows from starts' last number on count for nothing."""
    rows = Size.of("T")
    y = Value(BufferType((Size.of("P"), Size.of("W")), F32, 1), "y")
    places = Value(BufferType((rows, Size.of(chosen)), I32, 1), "places")
    starts = Value(BufferType((Size.of("S"),), I32, 0), "starts")
    out = Value(BufferType((rows, Size.of(width)), dtype, 1), "out")
    b = TileBuilder()
    row = b(t.BlockId, dim=0, hint="row")
    total = b(t.Read, starts, b.sub(b.size(Size.of("S")), 1), hint="total")
    whole = target.lanes * VECTORS
    layout = Layout(2).local(1, VECTORS).spatial(1, target.lanes)
    end = b.index(width)
    bounds = [(1, "zero", end)] if width % whole else []
    with b.loop(b.index(0), end, whole, hint="column") as column:
        zeros = b.filled(0.0, F32, layout)
        with b.loop(b.index(0), b.index(chosen), 1, [zeros], hint="choice") as choice:
            place = b(t.Read, places, row, choice.counter, hint="place")
            some = b(t.Less, place, total, hint="some")
            with b.loop(b.index(0), some, 1, [choice.carried[0]], hint="some") as once:
                part = b.load(y, [place, column.counter], (0, 1), layout, bounds, hint="part")
                once.next = (b(m.Add, once.carried[0], part, hint="sum"),)
            choice.next = once.results
        value = choice.results[0]
        if dtype != F32:
            value = b(m.Cast, value, dtype=dtype, hint="y")
        limits = [(1, end)] if width % whole else []
        b.store(value, out, [row, column.counter], (0, 1), limits)
    body = Region((y, places, starts, out), tuple(b.top.ops))
    attrs = {"grid": ((rows, 1),), "outputs": 1, "target": target.name}
    return canonicalise_graph(Graph("tile", "combine_experts", ("T", "P", "W", "S"), body, attrs))
