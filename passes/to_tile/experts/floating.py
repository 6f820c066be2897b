"""Products of sorted rows with experts' weights as a model keeps them, f32, bf16 or f16.

    y[p, n] = function(sum over k of x[p, k] * w0[active[i], n, k] + b0) [* (the same with w1)]
              [* scale[p]]                                 for starts[i] <= p < starts[i + 1]

A work item is some columns of one expert for all of its rows: what it reads of the weights comes
from memory once. Elements lie on lanes, so that weights need no other order than theirs; sums of
a square of rows and columns move from registers to lanes at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.expand_math import expand_math_graph
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.experts.gate import GateFunction

COLUMNS = 64  # of a work item
FEW = (1, 2)  # rows of a register tile where experts have few


@dataclass(frozen=True)
class FloatForm:
    """A grouped product: K columns of ``weight`` dtype, activations ``x``; ``products`` 2: gate and
    up; ``bias`` dtype or None; ``scaled``: times a number of each row."""

    length: int
    weight: DType
    x: DType
    products: int
    gate: GateFunction
    bias: DType | None
    scaled: bool


def tile_rows(target: Target, rows: int) -> int:
    """Rows of a register tile for experts that have up to about ``rows`` each."""
    square = max(1, int(target.lanes**0.5))
    return next((few for few in FEW if rows <= few < square), square)


def grouped_program(form: FloatForm, target: Target, rows: int) -> Graph:
    """The tile program for ``rows`` rows in a register tile: active i32 [A], starts i32 [S],
    x [P, K], w0 [E, N, K] and w1, then biases [E, N], then scale f32 [P] -> y [P, N]."""
    writer = _Grouped(form, target, rows)
    writer.item()
    params = writer.params
    body = Region(params, tuple(writer.b.top.ops))
    attrs = {
        "grid": ((Size.of("A"), 1), (Size.of("N"), COLUMNS)),
        "outputs": 1,
        "target": target.name,
    }
    graph = Graph("tile", "grouped_product", ("A", "S", "P", "E", "N"), body, attrs)
    return canonicalise_graph(expand_math_graph(canonicalise_graph(graph)))


class _Grouped:
    def __init__(self, form: FloatForm, target: Target, rows: int) -> None:
        self.b, self.form, self.lanes, self.rows = TileBuilder(), form, target.lanes, rows
        self.columns = target.lanes // rows
        names = [Size.of(n) for n in "ASPEN"]
        active, starts, every, experts, width = names
        self.width, length = width, Size.of(form.length)
        self.active = self._param("active", (active,), I32)
        self.starts = self._param("starts", (starts,), I32)
        self.x = self._param("x", (every, length), form.x)
        count = range(form.products)
        self.weights = [self._param(f"w{i}", (experts, width, length), form.weight) for i in count]
        self.biases: list[Value] = []
        if form.bias is not None:
            self.biases = [self._param(f"b{i}", (experts, width), form.bias) for i in count]
        scales = [self._param("scale", (every,), F32)] if form.scaled else []
        self.out = self._param("y", (every, width), F32)
        self.scale = scales[0] if scales else None
        self.params = (
            self.active,
            self.starts,
            self.x,
            *self.weights,
            *self.biases,
            *scales,
            self.out,
        )

    @staticmethod
    def _param(name: str, shape: Sequence[Size], dtype: DType) -> Value:
        return Value(BufferType(tuple(shape), dtype, len(shape) - 1), name)

    @property
    def result(self) -> Layout:
        """[rows, columns], each sum on a lane."""
        return Layout(2).spatial(self.rows, self.columns)

    def item(self) -> None:
        b = self.b
        number = b(t.BlockId, dim=0, hint="number")
        expert = b(t.Read, self.active, number, hint="expert")
        first = b(t.Read, self.starts, number, hint="first")
        last = b(t.Read, self.starts, b.add(number, 1), hint="last")
        total = b.size(self.width)
        start = b.mul(b(t.BlockId, dim=1, hint="columns"), COLUMNS)
        stop = b.minimum(b.add(start, COLUMNS), total)
        with (
            b.when_less(first, last),
            b.loop(start, stop, self.columns, hint="column") as column,
            b.loop(first, last, self.rows, hint="row") as row,
        ):
            self.tile(expert, row.counter, last, column.counter, total)

    def tile(self, expert: Value, row: Value, last: Value, column: Value, total: Value) -> None:
        """A square of rows and columns, from products to results."""
        b, sums = self.b, []
        place = (expert, column)
        for number, weight in enumerate(self.weights):
            value = self.product(weight, place, total, row, last)
            if self.biases:
                layout, bounds = self.result.collapse(0), [(1, "clamp", total)]
                bias = b.load(self.biases[number], list(place), (-1, 1), layout, bounds)
                value = b(m.Add, value, self.wide(bias), hint="sum")
            sums.append(value)
        y = self.form.gate.emit(b, sums[0], sums[1] if len(sums) > 1 else None)
        if self.scale is not None:
            bounds = [(0, "clamp", last)] if self.rows > 1 else []
            scale = b.load(self.scale, [row], (0,), self.result.collapse(1), bounds)
            y = b(m.Mul, y, scale, hint="y")
        limits = [(0, last)] if self.rows > 1 else []
        b.store(y, self.out, [row, column], (0, 1), [*limits, (1, total)])

    def product(
        self, weight: Value, place: tuple[Value, Value], total: Value, row: Value, last: Value
    ) -> Value:
        """[rows, columns] of x times one weight."""
        b, lanes, length = self.b, self.lanes, self.form.length
        acc = b.filled(0.0, F32, Layout(3).local(self.rows, self.columns, 1).spatial(1, 1, lanes))
        whole = length // lanes * lanes
        end = b.index(length)
        if whole:
            with b.loop(b.index(0), b.index(whole), lanes, [acc], hint="k") as loop:
                loop.next = (
                    self.step(loop.carried[0], weight, place, total, row, last, loop.counter, None),
                )
            acc = loop.results[0]
        if whole < length:
            acc = self.step(acc, weight, place, total, row, last, b.index(whole), end)
        return b(t.ReduceToLanes, acc, hint="sum")

    def step(
        self,
        acc: Value,
        weight: Value,
        place: tuple[Value, Value],
        total: Value,
        row: Value,
        last: Value,
        at: Value,
        end: Value | None,
    ) -> Value:
        """Adds products of a vector of elements; ``end``: where elements end in it."""
        b, lanes = self.b, self.lanes
        cut = [(2, "zero", end)] if end is not None else []
        rows = [(0, "clamp", last)] if self.rows > 1 else []
        x_layout = Layout(3).local(self.rows, 1, 1).spatial(1, 1, lanes)
        w_layout = Layout(3).local(1, self.columns, 1).spatial(1, 1, lanes)
        x = self.wide(b.load(self.x, [row, at], (0, 2), x_layout, [*rows, *cut], hint="x"))
        expert, column = place
        bounds = [(1, "clamp", total), *cut]
        w = b.load(weight, [expert, column, at], (-1, 1, 2), w_layout, bounds, hint="w")
        if self.rows <= FEW[-1] and end is None:
            # what the next columns will read at this place, long before their turn
            ahead = [expert, b.add(column, self.columns), at]
            b.prefetch(weight, ahead, (-1, 1, 2), w_layout)
        return b(m.Fma, x, self.wide(w), acc, hint="sum")

    def wide(self, x: Value) -> Value:
        dtype = getattr(x.type, "dtype", F32)
        return x if dtype == F32 else self.b(m.Cast, x, dtype=F32, hint=x.hint)
