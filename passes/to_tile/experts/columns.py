"""Grouped products with columns on lanes: elements of x are spread over a vector of columns.

Weights whose columns lie side by side can be read in place. With many rows a work item keeps what
the first ones read in scratch memory, in the order in which the others will read it: pairs of bf16
in a lane's word, or f32. Only there do the weights' own order and dtype make a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.grouped_form import FloatForm, Tiling, Way
from tilewright.passes.to_tile.experts.panel import Panel, Sum
from tilewright.passes.to_tile.experts.writer import GroupedWriter, Item, Rows

UNROLL = 2
BLOCK = 128  # f32 that are added up one after another; their sums are added up then

Body = Callable[[Value, int, list[Value]], list[Value]]


@dataclass(frozen=True)
class Place:
    """Where columns begin: of the result, and of the weights."""

    result: Value
    weight: Value


class Columns(GroupedWriter):
    """An item is a block of columns of one expert for all of its rows."""

    def __init__(self, form: FloatForm, target: Target, tiling: Tiling) -> None:
        super().__init__(form, target, tiling)
        lanes, least = self.lanes, 2 if form.woven else 1
        wanted = tiling.vectors // form.weights
        vectors = max(least, min(wanted, form.columns // lanes) // least * least)
        self.span = vectors * lanes  # columns of each weight
        self.masked = form.columns < self.span
        # tiles of sums, together with those that the function takes at once
        self.parts = [[Sum(i, 0, vectors) for i in range(form.weights)]]
        if form.woven:
            self.parts = [[Sum(0, at * lanes, 2)] for at in range(0, vectors, 2)]
        self.tiles = [tile for part in self.parts for tile in part]
        self.panel = Panel(self.b, form, target, self.span)

    @property
    def block(self) -> int:
        return self.span // 2 if self.form.woven else self.span

    def work(self, item: Item) -> None:
        b, form, first = self.b, self.form, item.first
        start = b.mul(item.number, self.block)
        if not self.masked:  # the last block ends with the columns
            start = b.minimum(start, form.width - self.block)
        place = Place(start, b.mul(start, 2) if form.woven else start)
        keeps = self.tiling.way == Way.PANEL
        if keeps:
            self.panel.make()
            rows = self.rows_from(first, item.last)
            write = self._in_place if form.turned else self._by_squares
            write(item, rows, place)
            first = b.add(first, self.rows)
        with b.loop(first, item.last, self.rows, hint="row") as row:
            rows = self.rows_from(row.counter, item.last)
            (self._from_panel if keeps else self._in_place)(item, rows, place)

    # ---- products of a tile of rows

    def _in_place(self, item: Item, rows: Rows, place: Place) -> None:
        """With weights as they lie in memory, which are kept if there is room for them."""
        panel, column = self.panel, place.weight

        def step(word: Value, count: int, sums: list[Value]) -> list[Value]:
            for j in range(count):
                here = self.b.add(word, j)
                found = [panel.load(self.weights, item, tile, column, here) for tile in self.tiles]
                panel.keep(self.tiles, found, here)
                sums = self._dots(rows, here, sums, found)
            if count == UNROLL:
                panel.ask_ahead(self.weights, item, self.tiles, column, word, count)
            return sums

        sums = self._added([tile.vectors for tile in self.tiles], UNROLL, step)
        self._finish_all(item, rows, place, sums)

    def _from_panel(self, item: Item, rows: Rows, place: Place) -> None:
        """With weights that were kept."""

        def step(word: Value, count: int, sums: list[Value]) -> list[Value]:
            for j in range(count):
                here = self.b.add(word, j)
                kept = [self.panel.kept(tile, here) for tile in self.tiles]
                sums = self._dots(rows, here, sums, kept)
            return sums

        sums = self._added([tile.vectors for tile in self.tiles], UNROLL, step)
        self._finish_all(item, rows, place, sums)

    def _by_squares(self, item: Item, rows: Rows, place: Place) -> None:
        """With squares of rows of memory, turned and kept, one vector of columns after another."""
        b, count = self.b, self.form.weights
        part = [Sum(number, 0, 1) for number in range(count)]
        with b.loop(b.index(0), b.index(self.span), self.lanes, hint="column") as column:
            here = b.add(place.weight, column.counter)
            sums: list[Value] = []
            for number in range(count):
                to = b.add(column.counter, number * self.span)
                sums += self._added([1], self.lanes, self._square(item, rows, number, here, to))
            self._finish(item, rows, Place(here, here), part, sums)

    def _square(self, item: Item, rows: Rows, number: int, column: Value, to: Value) -> Body:
        """Adds the products of a vector of columns, which lie at ``column`` and are kept at
        ``to``."""

        def step(word: Value, count: int, sums: list[Value]) -> list[Value]:
            place = item.expert, column, word
            words = self.panel.square(self.weights[number], place, to, count)
            for i, w in enumerate(words):
                sums = self._dots(rows, self.b.add(word, i), sums, [w])
            return sums

        return step

    def _dots(
        self, rows: Rows, word: Value, sums: list[Value], weights: list[Value]
    ) -> list[Value]:
        """Adds the products of one word of all rows."""
        b, layout = self.b, Layout(3).replicate(self.lanes)
        layout = layout.local(1, 1, 2) if self.pairs else layout
        x = self.load_x(rows, b.mul(word, self.panel.word), layout)
        x = x if self.pairs else self.wide(x)
        return [b(t.Dot, acc, x, w, hint="sum") for acc, w in zip(sums, weights, strict=True)]

    def _added(self, vectors: list[int], step: int, body: Body) -> list[Value]:
        """Sums [rows, vectors of columns] over all words: ``body`` adds those of so many words.

        Of f32 in blocks, whose sums are added up in memory: one after another, as many numbers as
        a row has would lose too much.
        """
        b, words = self.b, self.panel.words
        whole = words // step * step
        sums = zeros = [b.filled(0.0, F32, self._layout(count)) for count in vectors]

        def loop(start: Value, stop: Value) -> list[Value]:
            with b.loop(start, stop, step, zeros, hint="word") as inner:
                inner.next = tuple(body(inner.counter, step, list(inner.carried)))
            return list(inner.results)

        if self.pairs or whole <= BLOCK:
            sums = loop(b.index(0), b.index(whole)) if whole else zeros
        else:
            totals = [b.scratch([self.rows, count * self.lanes], F32, "total") for count in vectors]
            at = [b.index(0), b.index(0)]
            for total, zero in zip(totals, zeros, strict=True):
                b.store(zero, total, at, (0, 1))
            with b.loop(b.index(0), b.index(whole), BLOCK, hint="block") as outer:
                stop = b.minimum(b.add(outer.counter, BLOCK), whole)
                found = loop(outer.counter, stop)
                for total, count, part in zip(totals, vectors, found, strict=True):
                    before = b.load(total, at, (0, 1), self._layout(count), hint="total")
                    b.store(b(m.Add, before, part, hint="total"), total, at, (0, 1))
            both = zip(totals, vectors, strict=True)
            sums = [b.load(total, at, (0, 1), self._layout(count)) for total, count in both]
        return body(b.index(whole), words - whole, sums) if whole < words else sums

    def _layout(self, vectors: int) -> Layout:
        """Of sums [rows, columns]."""
        return Layout(2).local(self.rows, vectors).spatial(1, self.lanes)

    # ---- results

    def _finish_all(self, item: Item, rows: Rows, place: Place, sums: list[Value]) -> None:
        for part in self.parts:
            self._finish(item, rows, place, part, sums[: len(part)])
            sums = sums[len(part) :]

    def _finish(
        self, item: Item, rows: Rows, place: Place, part: list[Sum], sums: list[Value]
    ) -> None:
        """From the sums of a part to its results."""
        b, form, vectors, offset = self.b, self.form, part[0].vectors, part[0].offset
        if self.biases:
            sums = [
                b(m.Add, value, self._bias(item, tile, place.weight), hint="sum")
                for value, tile in zip(sums, part, strict=True)
            ]
        if form.woven:
            sums, vectors, offset = self._unwoven(sums[0]), 1, offset // 2
        y = self.result(sums, rows, self._layout(vectors))
        column = b.add(place.result, offset)
        limits = [(1, b.index(form.width))] if self.masked else []
        for r in range(self.rows):
            here, one = b.add(rows.first, r), b(t.Take, y, at=r)
            if r == 0:
                b.store(one, self.out, [here, column], (-1, 1), limits)
                continue
            with b.when_less(here, item.last):
                b.store(one, self.out, [here, column], (-1, 1), limits)

    def _bias(self, item: Item, tile: Sum, at: Value) -> Value:
        b, layout = self.b, self._layout(tile.vectors).collapse(0)
        bounds = [(1, "zero", b.index(self.form.columns))] if self.masked else []
        place = [item.expert, b.add(at, tile.offset)]
        return self.wide(b.load(self.biases[tile.weight], place, (-1, 1), layout, bounds))

    def _unwoven(self, sums: Value) -> list[Value]:
        """The columns of gate and those of up."""
        b, lanes, rows = self.b, self.lanes, self.rows
        beside = Layout(2).spatial(1, lanes).local(1, 2).local(rows, 1)
        both = Layout(3).local(2, 1, 1).local(1, rows, 1).spatial(1, 1, lanes)
        x = b(t.Rearrange, sums, layout=beside, hint="both")
        x = b(View, x, dtype=F32, layout=both, hint="both")
        return [
            b(View, b(t.Take, x, at=h), dtype=F32, layout=self._layout(1), hint=name)
            for h, name in enumerate(("gate", "up"))
        ]
