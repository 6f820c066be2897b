"""What all programs of grouped products have in common: parameters, work items, and the way from
sums to results."""

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
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, Tiling

LINE = 64 * 8  # bits that memory gives at once


@dataclass(frozen=True)
class Item:
    """A work item: block ``number`` of an expert's columns, for rows ``first`` to ``last``."""

    expert: Value
    first: Value
    last: Value
    number: Value


@dataclass(frozen=True)
class Rows:
    """The rows of a register tile, from ``first`` on and below ``last``; ``chosen``: where they are
    in x, if not there."""

    first: Value
    last: Value
    chosen: tuple[Value, ...] = ()


def item_rows(b: TileBuilder, active: Value, starts: Value) -> tuple[Value, Value, Value]:
    """The expert of a work item, and the first of its sorted rows and the one past the last."""
    number = b(t.BlockId, dim=0, hint="number")
    expert = b(t.Read, active, number, hint="expert")
    first = b(t.Read, starts, number, hint="first")
    return expert, first, b(t.Read, starts, b.add(number, 1), hint="last")


class GroupedWriter:
    """Base: subclasses say how many columns an item has and write what it does."""

    def __init__(self, form: FloatForm, target: Target, tiling: Tiling) -> None:
        self.b, self.form, self.tiling = TileBuilder(), form, tiling
        self.target, self.lanes, self.rows = target, target.lanes, tiling.rows
        self.pairs = form.pairs(target)
        active, starts, every, experts = (Size.of(n) for n in "ASPE")
        length, width, columns = (Size.of(n) for n in (form.length, form.width, form.columns))
        unit = 1 if form.turned else 2
        self.active = _param("active", (active,), I32)
        self.starts = _param("starts", (starts,), I32)
        self.tokens = _param("tokens", (every,), I32) if form.chosen else None
        self.x = _param("x", (Size.of("T") if form.chosen else every, length), form.x)
        self.weights = [
            _param(f"w{i}", (experts, columns, length), form.weight, unit)
            for i in range(form.weights)
        ]
        self.biases: list[Value] = []
        if form.bias is not None:
            count = range(form.weights)
            self.biases = [_param(f"b{i}", (experts, columns), form.bias) for i in count]
        self.scale = _param("scale", (every,), F32) if form.scaled else None
        self.out = _param("y", (every, width), form.out)

    @property
    def block(self) -> int:
        """Columns of the result that an item makes."""
        raise NotImplementedError

    def work(self, item: Item) -> None:
        """Writes an item that has rows."""
        raise NotImplementedError

    def program(self) -> Graph:
        """The whole tile program."""
        b = self.b
        expert, first, last = item_rows(b, self.active, self.starts)
        with b.when_less(first, last):
            self.work(Item(expert, first, last, b(t.BlockId, dim=1, hint="columns")))
        places = self.active, self.starts, self.tokens, self.x
        given = *places, *self.weights, *self.biases, self.scale, self.out
        params = tuple(value for value in given if value is not None)
        attrs = {
            "grid": ((Size.of("A"), 1), (Size.of(self.form.width), self.block)),
            "outputs": 1,
            "target": self.target.name,
        }
        body = Region(params, tuple(b.top.ops))
        names = ("A", "S", "P", "T", "E") if self.form.chosen else ("A", "S", "P", "E")
        graph = Graph("tile", "grouped_product", names, body, attrs)
        return canonicalise_graph(expand_math_graph(canonicalise_graph(graph)))

    def rows_from(self, first: Value, last: Value) -> Rows:
        """The rows of a register tile."""
        if self.tokens is None:
            return Rows(first, last)
        b, found = self.b, []
        for r in range(self.rows):
            at = b.minimum(b.add(first, r), b.sub(last, 1)) if r else first
            found.append(b(t.Read, self.tokens, at, hint="token"))
        return Rows(first, last, tuple(found))

    def load_x(
        self, rows: Rows, at: Value, layout: Layout, cut: Sequence[tuple[int, str, Value]] = ()
    ) -> Value:
        """[rows, 1, elements] of x from element ``at`` on, each row of ``layout``."""
        b = self.b
        if rows.chosen:
            each = [b.load(self.x, [r, at], (0, 2), layout, cut, hint="x") for r in rows.chosen]
            return each[0] if len(each) == 1 else b(t.Stack, *each, hint="x")
        whole = Layout(3).local(self.rows, 1, 1) @ layout
        bounds = [(0, "clamp", rows.last)] if self.rows > 1 else []
        return b.load(self.x, [rows.first, at], (0, 2), whole, [*bounds, *cut], hint="x")

    def result(self, sums: Sequence[Value], rows: Rows, layout: Layout) -> Value:
        """From gate and up, or one sum, of ``layout`` to what is stored."""
        b = self.b
        y = self.form.gate.emit(b, sums[0], sums[1] if len(sums) > 1 else None)
        if self.scale is not None:
            bounds = [(0, "clamp", rows.last)] if self.rows > 1 else []
            layout = layout.collapse(1)
            scale = b.load(self.scale, [rows.first], (0,), layout, bounds, hint="scale")
            y = b(m.Mul, y, scale, hint="y")
        return y if self.form.out == F32 else b(m.Cast, y, dtype=self.form.out, hint="y")

    def wide(self, x: Value) -> Value:
        """As f32."""
        dtype = getattr(x.type, "dtype", F32)
        return x if dtype == F32 else self.b(m.Cast, x, dtype=F32, hint=x.hint)


def _param(name: str, shape: Sequence[Size], dtype: DType, unit: int | None = None) -> Value:
    unit = len(shape) - 1 if unit is None else unit
    return Value(BufferType(tuple(shape), dtype, unit), name)


def lines(layout: Layout, dtype: DType) -> Layout:
    """``layout``, of vectors along its last dimension, which lies side by side in memory, as wide
    as what memory gives at once: one for each of its registers."""
    count = max(1, LINE // (layout.lanes * dtype.bits))
    return layout.local(*[1] * (layout.rank - 1), count)
