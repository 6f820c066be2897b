"""Weights [1, columns, word] with columns on lanes, and the scratch memory that keeps them.

A word is what products take of a row at once: an element as f32, or two of bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F32, I32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.experts.grouped_form import FloatForm
from tilewright.passes.to_tile.experts.writer import Item, lines

AHEAD = 24  # elements of a column that are asked for ahead of time


@dataclass(frozen=True)
class Sum:
    """A register tile of sums: vectors of a weight's columns from ``offset`` of the item's on."""

    weight: int
    offset: int
    vectors: int


class Panel:
    """``span`` columns of each weight of an expert."""

    def __init__(self, b: TileBuilder, form: FloatForm, target: Target, span: int) -> None:
        self.b, self.form, self.span = b, form, span
        self.lanes, self.pairs = target.lanes, form.pairs(target)
        self.word = 2 if self.pairs else 1
        self.words = form.length // self.word
        self.masked = form.columns < span
        self.memory: Value | None = None

    def make(self) -> None:
        """Room for all of them: what is loaded from now on can be kept."""
        squares = -(-self.words // self.lanes)
        shape = [squares * self.lanes, self.form.weights * self.span]
        self.memory = self.b.scratch(shape, I32 if self.pairs else F32, "panel")

    # ---- weights whose columns lie side by side

    def load(
        self, weights: Sequence[Value], item: Item, tile: Sum, column: Value, word: Value
    ) -> Value:
        """As they lie in memory: columns of one row, or of two that are woven."""
        b, bounds = self.b, []
        if self.masked:
            bounds = [(1, "zero", b.index(self.form.columns))]
        weight = weights[tile.weight]
        place = [item.expert, b.add(column, tile.offset), b.mul(word, self.word)]
        if self.pairs:
            two = Layout(2).local(2, tile.vectors).spatial(1, self.lanes)
            w = b.load(weight, place, (-1, 1, 0), two, bounds, hint="w")
            return b(t.PackPairs, w, dtype=BF16, hint="w")
        w = b.load(weight, place, (-1, 1, 2), self._vectors(tile.vectors), bounds, hint="w")
        return self._wide(w)

    def keep(self, tiles: Sequence[Sum], loaded: Sequence[Value], word: Value) -> None:
        """Keeps what was loaded, if there is room."""
        if self.memory is None:
            return
        b = self.b
        for tile, given in zip(tiles, loaded, strict=True):
            flat = Layout(2).local(1, tile.vectors).spatial(1, self.lanes)
            w = b(View, given, dtype=I32 if self.pairs else F32, layout=flat, hint="w")
            b.store(w, self.memory, [word, self._place(tile)], (-1, 1))

    def ask_ahead(
        self,
        weights: Sequence[Value],
        item: Item,
        tiles: Sequence[Sum],
        column: Value,
        word: Value,
        count: int,
    ) -> None:
        """For what the same columns of ``count`` words will be multiplied with next."""
        b = self.b
        for j in range(count * self.word):
            k = b.add(b.mul(word, self.word), j + AHEAD)
            for tile in tiles:
                place = [item.expert, b.add(column, tile.offset), k]
                b.prefetch(weights[tile.weight], place, (-1, 1, 2), self._vectors(tile.vectors))

    # ---- weights whose rows do

    def square(
        self, weight: Value, place: tuple[Value, Value, Value], to: Value, count: int
    ) -> list[Value]:
        """``count`` words of a vector of columns, at expert, column and word: a square of memory,
        turned, and kept from column ``to`` on."""
        b, lanes, form, (expert, column, word) = self.b, self.lanes, self.form, place
        square = Layout(2).local(lanes, 1).spatial(1, lanes)
        layout = square.local(1, 2) if self.pairs else square
        bounds = [(1, "zero", b.index(form.length))] if count < lanes else []
        if self.masked:
            bounds.append((0, "clamp", b.index(form.columns)))
        at = [expert, column, b.mul(word, self.word)]
        w = b.load(weight, at, (-1, 0, 1), layout, bounds, hint="w")
        if count == lanes:  # what the next vector of columns will read at this place
            ahead = [expert, b.add(column, lanes), at[-1]]
            b.prefetch(weight, ahead, (-1, 0, 1), lines(square, form.weight))
        w = b(View, w, dtype=I32, layout=square, hint="w") if self.pairs else self._wide(w)
        turned = b(t.Transpose, w, hint="w")
        assert self.memory is not None
        b.store(turned, self.memory, [word, to], (0, 1))
        return [self._as_words(b(t.Take, turned, at=i), 1) for i in range(count)]

    # ---- what was kept

    def kept(self, tile: Sum, word: Value) -> Value:
        """A word of a tile's columns."""
        b, layout = self.b, self._vectors(tile.vectors)
        assert self.memory is not None
        w = b.load(self.memory, [word, self._place(tile)], (-1, 1), layout, hint="w")
        return self._as_words(w, tile.vectors)

    def _place(self, tile: Sum) -> Value:
        """Where a tile's columns are kept."""
        return self.b.index(tile.weight * self.span + tile.offset)

    def _vectors(self, vectors: int) -> Layout:
        return Layout(3).local(1, vectors, 1).spatial(1, self.lanes, 1)

    def _as_words(self, w: Value, vectors: int) -> Value:
        """As products take them."""
        layout = self._vectors(vectors)
        if self.pairs:
            return self.b(View, w, dtype=BF16, layout=layout.local(1, 1, 2), hint="w")
        return self.b(View, w, dtype=F32, layout=layout, hint="w")

    def _wide(self, w: Value) -> Value:
        return w if self.form.weight == F32 else self.b(m.Cast, w, dtype=F32, hint="w")
