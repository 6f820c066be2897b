"""The results of a token's experts added up, in the order in which the router chose them."""

from __future__ import annotations

import math

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32, I64, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.whole_blocks.experts.products import param
from tilewright.passes.to_tile.whole_blocks.schedule import LEAST, power_of_two

COLUMNS = 1024  # of a work item
ALL_AT_ONCE = 16  # choices of a token that are read without waiting for one another


def sum_program(chosen: int, width: int, y: DType, out: DType, target: Target) -> Graph:
    """The tile program: y [P, width] (dtype ``y``), places i32 [T, k] -> [T, width] of dtype
    ``out``: the sum over k of y[places], in f32.

    A place of P or more is of no expert, and counts for nothing; one below 0 of an id that was
    wrong, and makes the token's result NaN.
    """
    rows, every = Size.of("T"), Size.of("P")
    source = param("y", (every, Size.of(width)), y)
    places = param("places", (rows, Size.of(chosen)), I32)
    result = param("out", (rows, Size.of(width)), out)
    columns = min(COLUMNS, max(LEAST, power_of_two(width)))
    writer = _Sum(source, places, width, columns)
    row = writer.b(t.BlockId, dim=0, hint="row")
    column = writer.b.mul(writer.b(t.BlockId, dim=1, hint="columns"), columns)
    writer.write(row, column, chosen, result, out)
    body = Region((source, places, result), tuple(writer.b.top.ops))
    attrs = {
        "grid": ((rows, 1), (Size.of(width), columns)),
        "outputs": 1,
        "target": target.name,
        "warps": 4,
        "stages": 2,
        "bulk": False,
    }
    return canonicalise_graph(Graph("tile", "sum_experts", ("T", "P"), body, attrs))


class _Sum:
    def __init__(self, source: Value, places: Value, width: int, columns: int) -> None:
        self.b, self.source, self.places = TileBuilder(), source, places
        self.width, self.layout = width, Layout(2).local(1, columns)
        self.cut = bool(width % columns)

    def write(self, row: Value, column: Value, chosen: int, result: Value, out: DType) -> None:
        b = self.b
        total = b.filled(0.0, F32, self.layout)
        if chosen <= ALL_AT_ONCE:
            for choice in range(chosen):
                total = self._added(total, row, b.index(choice), column)
        else:
            with b.loop(b.index(0), b.index(chosen), 1, [total], hint="choice") as loop:
                loop.next = (self._added(loop.carried[0], row, loop.counter, column),)
            total = loop.results[0]
        if out != F32:
            total = b(m.Cast, total, dtype=out, hint="y")
        limits = [(1, b.index(self.width))] if self.cut else []
        b.store(total, result, [row, column], (0, 1), limits)

    def _added(self, total: Value, row: Value, choice: Value, column: Value) -> Value:
        b, every = self.b, b_size(self.b)
        place = b(t.Read, self.places, row, choice, hint="place")
        inside = b.maximum(b.minimum(place, b.sub(every, 1)), 0)
        bounds = [(1, "zero", b.index(self.width))] if self.cut else []
        part = b.load(self.source, [inside, column], (0, 1), self.layout, bounds, hint="part")
        if part.type.dtype != F32:  # type: ignore[union-attr]
            part = b(m.Cast, part, dtype=F32, hint="part")
        place, zero = b.splat(place), b.number(0, I64)
        none, wrong = b.number(0.0, F32), b.number(math.nan, F32)
        right = b(m.Compare, place, b.splat(every), relation="lt", hint="some")
        part = b(m.Select, right, part, none, hint="part")
        right = b(m.Compare, place, zero, relation="ge", hint="right")
        part = b(m.Select, right, part, wrong, hint="part")
        return b(m.Add, total, part, hint="sum")


def b_size(b: TileBuilder) -> Value:
    """P, the number of sorted rows."""
    return b.size(Size.of("P"))
