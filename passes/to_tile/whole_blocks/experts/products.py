"""Products of sorted rows with experts' weights as a model keeps them, on whole blocks.

    y[p, n] = function(sum over k of x[p, k] * w0[e, n, k] + b0) [* (the same with w1)] [* scale[p]]

A work item is a block of columns for a block of rows of one expert; which rows those are is in the
plan, so that the grid is known before the plan is: it has as many blocks as there may be, and those
that the plan did not need end at once.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from tilewright.passes.to_tile.experts.grouped_form import FloatForm
from tilewright.passes.to_tile.whole_blocks.experts.blocks import ProductBlocks
from tilewright.passes.to_tile.whole_blocks.experts.items import block_of_rows, rows_of_x


def product_program(form: FloatForm, blocks: ProductBlocks, target: Target) -> Graph:
    """The tile program: blocks i32 [R, 3] (expert, first row, the row past the last), [tokens i32
    [P]], x [P, K] (or [T, K] with tokens), w0 [E, N, K] and w1 (or, woven, one [E, 2N, K]), then
    their biases, then scale f32 [P] -> y [P, N]."""
    return _Product(form, blocks, target).program()


class _Product:
    def __init__(self, form: FloatForm, blocks: ProductBlocks, target: Target) -> None:
        self.b, self.form, self.blocks, self.target = TileBuilder(), form, blocks, target
        every, experts = Size.of("P"), Size.of("E")
        length, width, columns = (Size.of(n) for n in (form.length, form.width, form.columns))
        unit = 1 if form.turned else 2
        self.plan = param("blocks", (Size.of("R"), Size.of(3)), I32)
        self.tokens = param("tokens", (every,), I32) if form.chosen else None
        self.x = param("x", (Size.of("T") if form.chosen else every, length), form.x)
        self.weights = [
            param(f"w{i}", (experts, columns, length), form.weight, unit)
            for i in range(form.weights)
        ]
        count = range(form.weights if form.bias is not None else 0)
        self.biases = [param(f"b{i}", (experts, columns), form.bias or F32) for i in count]
        self.scale = param("scale", (every,), F32) if form.scaled else None
        self.out = param("y", (every, width), form.out)
        self.span = blocks.columns * (2 if form.woven else 1)  # columns of a weight

    def program(self) -> Graph:
        """The whole tile program."""
        b, form, blocks = self.b, self.form, self.blocks
        expert, first, last = block_of_rows(b, self.plan)
        with b.when_less(first, last):
            column = b.mul(b(t.BlockId, dim=1, hint="columns"), blocks.columns)
            self._item(expert, first, last, column)
        given = self.plan, self.tokens, self.x, *self.weights, *self.biases, self.scale, self.out
        attrs = {
            "grid": ((Size.of("R"), 1), (Size.of(form.width), blocks.columns)),
            "outputs": 1,
            "target": self.target.name,
            "warps": blocks.warps,
            "stages": blocks.stages,
            "bulk": False,
        }
        names = ("R", "P", "T", "E") if form.chosen else ("R", "P", "E")
        body = Region(tuple(v for v in given if v is not None), tuple(b.top.ops))
        return canonicalise_graph(Graph("tile", "grouped_product", names, body, attrs))

    def _item(self, expert: Value, first: Value, last: Value, column: Value) -> None:
        """One block of rows and columns, from products to results."""
        b, layout = self.b, Layout(2).local(self.blocks.rows, 1)
        rows = rows_of_x(b, self.tokens, first, last, layout)
        start = b.mul(column, 2) if self.form.woven else column
        sums = self._sums(rows, expert, start)
        for i, bias in enumerate(self.biases):
            sums[i] = b(m.Add, sums[i], self._bias(bias, expert, start), hint="sum")
        if self.form.woven:
            sums = [b(t.Alternate, sums[0], at=i, hint=("gate", "up")[i]) for i in range(2)]
        y = self.form.gate.emit(b, sums[0], sums[1] if len(sums) > 1 else None)
        if self.scale is not None:
            column_of_rows = Layout(2).local(self.blocks.rows, 1)
            cut = [(0, "zero", last)]
            scale = b.load(self.scale, [first], (0,), column_of_rows, cut, hint="scale")
            y = b(m.Mul, y, scale, hint="y")
        if self.form.out != F32:
            y = b(m.Cast, y, dtype=self.form.out, hint="y")
        bounds = [(0, last), *((d, end) for d, _, end in self._past(1, self.blocks.columns, False))]
        b.store(y, self.out, [first, column], (0, 1), bounds)

    def _sums(self, rows: Value, expert: Value, start: Value) -> list[Value]:
        """f32 [rows, span] of x times every weight from column ``start`` on."""
        b, form, blocks = self.b, self.form, self.blocks
        zero = b.filled(0.0, F32, Layout(2).local(blocks.rows, self.span))
        end = [b.index(form.length)] if form.length % blocks.terms else []
        narrow = form.x == form.weight
        with b.loop(
            b.index(0), b.index(form.length), blocks.terms, [zero] * form.weights, hint="k"
        ) as loop:
            layout = Layout(2).local(blocks.rows, blocks.terms)
            x = b(t.LoadRows, self.x, rows, loop.counter, *end, layout=layout, hint="x")
            bounds = [(0, "zero", e) for e in end] + self._past(1, self.span, form.woven)
            layout = Layout(2).local(blocks.terms, self.span)
            found = []
            for weight, acc in zip(self.weights, loop.carried, strict=True):
                at = [expert, start, loop.counter]
                w = b.load(weight, at, (-1, 1, 0), layout, bounds, hint="w")
                sides = (x, w) if narrow else (self._wide(x), self._wide(w))
                found.append(b(t.Product, acc, *sides, hint="sum"))
            loop.next = tuple(found)
        return list(loop.results)

    def _bias(self, bias: Value, expert: Value, start: Value) -> Value:
        """f32 [1, span]"""
        layout, bounds = Layout(2).local(1, self.span), self._past(1, self.span, self.form.woven)
        return self._wide(self.b.load(bias, [expert, start], (-1, 1), layout, bounds, hint="bias"))

    def _past(self, dim: int, columns: int, woven: bool) -> list[tuple[int, str, Value]]:
        """The bound of a tile of columns along dimension ``dim``, if it may pass the last one."""
        total = self.form.width * (2 if woven else 1)
        return [(dim, "zero", self.b.index(total))] if total % columns else []

    def _wide(self, x: Value) -> Value:
        """As f32."""
        dtype = getattr(x.type, "dtype", F32)
        return x if dtype == F32 else self.b(m.Cast, x, dtype=F32, hint=x.hint)


def param(name: str, shape: Sequence[Size], dtype: DType, unit: int | None = None) -> Value:
    """A buffer, its last dimension (or ``unit``) side by side in memory."""
    unit = len(shape) - 1 if unit is None else unit
    return Value(BufferType(tuple(shape), dtype, unit), name)
