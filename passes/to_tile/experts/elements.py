"""Grouped products with the elements of a row on lanes, for weights whose rows lie side by side.

Weights are read in the order in which they lie; sums of a square of rows and columns move from
registers to lanes at the end.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.experts.writer import GroupedWriter, Item, Rows, lines

COLUMNS = 64  # of a work item


class Elements(GroupedWriter):
    """An item is some columns of one expert for all of its rows."""

    block = COLUMNS

    @property
    def columns(self) -> int:
        """Of a register tile."""
        return self.lanes // self.rows

    @property
    def layout(self) -> Layout:
        """Of results [rows, columns], each on a lane."""
        return Layout(2).spatial(self.rows, self.columns)

    def work(self, item: Item) -> None:
        b, total = self.b, self.b.index(self.form.width)
        start = b.mul(item.number, COLUMNS)
        stop = b.minimum(b.add(start, COLUMNS), total)
        with (
            b.loop(start, stop, self.columns, hint="column") as column,
            b.loop(item.first, item.last, self.rows, hint="row") as row,
        ):
            self._tile(item, self.rows_from(row.counter, item.last), column.counter, total)

    def _tile(self, item: Item, rows: Rows, column: Value, total: Value) -> None:
        """A square of rows and columns, from products to results."""
        b, sums = self.b, []
        for number, weight in enumerate(self.weights):
            value = self._product(item, weight, rows, column, total)
            if self.biases:
                layout, bounds = self.layout.collapse(0), [(1, "clamp", total)]
                bias = b.load(self.biases[number], [item.expert, column], (-1, 1), layout, bounds)
                value = b(m.Add, value, self.wide(bias), hint="sum")
            sums.append(value)
        y = self.result(sums, rows, self.layout)
        limits = [(0, item.last)] if self.rows > 1 else []
        b.store(y, self.out, [rows.first, column], (0, 1), [*limits, (1, total)])

    def _product(self, item: Item, weight: Value, rows: Rows, column: Value, total: Value) -> Value:
        """[rows, columns] of x times one weight."""
        b, lanes, length = self.b, self.lanes, self.form.length
        acc = b.filled(0.0, F32, Layout(3).local(self.rows, self.columns, 1).spatial(1, 1, lanes))
        step = lanes * (2 if self.pairs else 1)
        whole = length // step * step
        if whole:
            with b.loop(b.index(0), b.index(whole), step, [acc], hint="k") as loop:
                at = (column, loop.counter)
                loop.next = (self._step(loop.carried[0], item, weight, rows, at, total, None),)
            acc = loop.results[0]
        if whole < length:
            at = (column, b.index(whole))
            acc = self._step(acc, item, weight, rows, at, total, b.index(length))
        return b(t.ReduceToLanes, acc, hint="sum")

    def _step(
        self,
        acc: Value,
        item: Item,
        weight: Value,
        rows: Rows,
        place: tuple[Value, Value],
        total: Value,
        end: Value | None,
    ) -> Value:
        """Adds products of a vector of elements; ``end``: where elements end in it."""
        b, (column, at), lanes = self.b, place, self.lanes
        cut = [(2, "zero", end)] if end is not None else []
        x = self.load_x(rows, at, self._vectors(1), cut)
        bounds, layout = [(1, "clamp", total), *cut], self._vectors(self.columns)
        w = b.load(weight, [item.expert, column, at], (-1, 1, 2), layout, bounds, hint="w")
        if end is None:
            # what the next columns will read at this place, long before their turn
            ahead = [item.expert, b.add(column, self.columns), at]
            plain = Layout(3).local(1, self.columns, 1).spatial(1, 1, lanes)
            b.prefetch(weight, ahead, (-1, 1, 2), lines(plain, self.form.weight))
        if self.pairs:
            return b(t.PairDot, acc, x, w, hint="sum")
        return b(m.Fma, self.wide(x), self.wide(w), acc, hint="sum")

    def _vectors(self, columns: int) -> Layout:
        layout = Layout(3).local(1, columns, 1).spatial(1, 1, self.lanes)
        return layout.local(1, 1, 2) if self.pairs else layout
