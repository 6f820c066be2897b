"""One product with packed weights: sums over all k, or a part of it, in registers.

A turn of the loop takes some strips of 32 codes; a strip of weights [rows, 32] times one of
activations [32, columns] is one product of matrices. Scales are put on the sums of a run of strips,
exactly as the codes allow, or, where runs are short beside the columns, on the weights themselves,
which are then rounded to the activations' dtype. With few columns zeros are put on sums, too:

    sum_k x_k (c_k - z)  ->  sum_k x_k c_k - z sum_k x_k

where the sum of activations is a product with a matrix of ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, U8, DType
from tilewright.ir.layout import Layout
from tilewright.ir.packing import STRIP
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.lowbit.info import PackedProduct
from tilewright.passes.to_tile.lowbit.weights import Workplace
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import (
    StripDecoder,
    product_dtype,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.numbers import Beside, GroupNumbers
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import FEW, ProductSchedule
from tilewright.passes.to_tile.whole_blocks.lowbit.words import Block, TurnWords

Tiles = list[Value]
LONG_RUN = 2  # columns for each code of a run up to which sums are scaled: what weights cost


@dataclass(frozen=True)
class Place:
    """Where a work item is: its blocks of weights, its first row of activations, how many rows
    there are, and which part of k it takes (None: all). ``named``: a tile i64 [1, rows] of the rows
    of activations that it takes instead, all of them there."""

    blocks: tuple[Block, ...]
    row: Value
    rows: Value
    part: Value | None
    named: Value | None = None


class StripProduct:
    """Builds the sums [rows of weights, rows of activations] of one product."""

    def __init__(
        self,
        work: Workplace,
        product: PackedProduct,
        schedule: ProductSchedule,
        table: Value | None,
        on_weights: bool = False,
    ) -> None:
        """``on_weights``: scales are put on weights in any case."""
        assert isinstance(product.activations, s.Source)
        w = product.weights
        self.work, self.b, self.schedule, self.table = work, work.build, schedule, table
        self.length = product.length
        self.strips = strips = min(schedule.strips, w.layout.chunk // STRIP)
        self.x = work.buffers[product.activations.tensor]
        assert isinstance(self.x.type, BufferType)
        self.made = product_dtype(w.dtype, self.x.type.dtype)
        height = schedule.height
        self.numbers = GroupNumbers(work, w, self.length, strips, height)  # units come below
        self.words = TurnWords.of(work, work.buffers[w.words], w.layout, strips, height)
        self.columns, self.has_zeros = schedule.rows, w.extra == "zeros"
        self.on_sums = not on_weights and self._sums_are_scaled
        self.zeros_on_sums = self.has_zeros and self.on_sums and self.columns <= FEW
        zero = 0 if self.has_zeros else w.zero
        self.decoder = StripDecoder(w.layout, w.dtype, zero, self._zeros(product), self.made)
        self.numbers = replace(self.numbers, unit=self.decoder.unit)
        self.once: list[Beside] = []  # of every block, where a row is one group

    def _zeros(self, product: PackedProduct) -> str:
        w = product.weights
        if not self.has_zeros or self.zeros_on_sums:
            return ""
        memory = self.work.buffers[w.more[0]].type
        return "whole" if isinstance(memory, BufferType) and memory.dtype == U8 else "float"

    @property
    def sums(self) -> Layout:
        return Layout(2).local(self.schedule.height, self.columns)

    @property
    def _sums_are_scaled(self) -> bool:
        """Whether scales are put on sums."""
        if self.numbers.ragged:
            return False
        codes = STRIP * max(self.numbers.run, 1)
        return self.numbers.single or self.columns <= LONG_RUN * codes

    def run(self, place: Place) -> Tiles:
        """The sums for every block of the work item."""
        b = self.b
        totals = [b.filled(0.0, F32, self.sums) for _ in place.blocks]
        if self.numbers.single:
            if self.zeros_on_sums:
                totals.append(b.filled(0.0, F32, self.sums))  # of activations
            self.once = [self.numbers.at(block, b.index(0)) for block in place.blocks]
        count = len(totals)
        first, whole, last = self._span(place)
        ahead = self._ahead(place, first)
        with b.loop(first, whole, 1, [*totals, *ahead], hint="turn") as loop:
            following = self._ahead(place, b.add(loop.counter, 1))
            made = self.turn(place, loop.counter, loop.carried[:count], loop.carried[count:])
            loop.next = (*made, *following)
        totals, ahead = list(loop.results[:count]), list(loop.results[count:])
        rest = self.length % (STRIP * self.strips)
        if rest:
            with b.loop(b.maximum(first, whole), last, 1, totals, hint="turn") as loop:
                loop.next = tuple(self.turn(place, loop.counter, loop.carried, ahead, rest))
            totals = list(loop.results)
        if not self.numbers.single:
            return totals
        each = zip(totals[: len(place.blocks)], self.once, strict=True)
        return [
            b(m.Mul, self._without_zeros(x, beside, totals[-1]), beside.scale, hint="total")
            for x, beside in each
        ]

    def _without_zeros(self, part: Value, beside: Beside, x: Value) -> Value:
        """Sums of codes less their zeros; ``x``: sums of activations."""
        if not self.zeros_on_sums:
            return part
        assert beside.zero is not None
        return self.b(m.Sub, part, self.b(m.Mul, x, beside.zero, hint="lost"), hint="sum")

    def _span(self, place: Place) -> tuple[Value, Value, Value]:
        """The first turn, the end of the whole ones, and the end of all."""
        b, size = self.b, STRIP * self.strips
        whole, turns = self.length // size, -(-self.length // size)
        if place.part is None:
            return b.index(0), b.index(whole), b.index(turns)
        each = -(-turns // self.schedule.parts)
        first = b.mul(place.part, each)
        last = b.minimum(b.add(first, each), turns)
        return first, b.minimum(last, whole), last

    def _ahead(self, place: Place, turn: Value) -> Tiles:
        """What a turn's runs are scaled by, block after block: read a turn before."""
        if not self.numbers.known:
            return []
        last = -(-self.length // (STRIP * self.strips)) - 1
        turn = self.b.minimum(turn, last)
        found = [x for block in place.blocks for x in self.numbers.of_turn(block, turn)]
        return [part for x in found for part in (x.scale, x.zero) if part is not None]

    def turn(
        self,
        place: Place,
        turn: Value,
        totals: Sequence[Value],
        ahead: Sequence[Value],
        cut: int = 0,
    ) -> Tiles:
        """The totals after a turn; of one that is cut only so many codes count."""
        b, size = self.b, STRIP * self.strips
        first = b.mul(turn, size)
        strips = -(-(cut or size) // STRIP)
        x = [self._activations(place, b.add(first, STRIP * i), cut) for i in range(strips)]
        runs = self._runs(strips)
        ones = [self._activation_sums(x, run) for run in runs] if self.zeros_on_sums else []
        out = []
        for at, block in enumerate(place.blocks):
            per_block = len(ahead) // len(place.blocks)
            known = ahead[at * per_block : (at + 1) * per_block]
            beside = [self._beside(at, block, first, i, known) for i in range(strips)]
            words = self.words.read(block, turn)
            out.append(self._block(words, x, beside, totals[at], ones))
        if self.numbers.single and ones:
            out.append(b(m.Add, totals[-1], ones[0], hint="sum_x"))
        return out

    def _runs(self, strips: int) -> list[range]:
        """The strips of a turn that one product's sums take."""
        run = self.numbers.run or 1
        if self.numbers.single or not self.on_sums:
            run = strips
        return [range(at, min(at + run, strips)) for at in range(0, strips, run)]

    def _activation_sums(self, x: Tiles, run: range) -> Value:
        """The sums of a run's activations, for every row of weights."""
        b = self.b
        ones = b.filled(1.0, self.made, Layout(2).local(self.schedule.height, STRIP))
        out = b.filled(0.0, F32, self.sums)
        for strip in run:
            out = b(t.Product, out, ones, x[strip], hint="sum_x")
        return out

    def matrix(self, block: Block, turn: Value) -> Iterator[tuple[Value, Value]]:
        """The strips of a turn as they are multiplied, and the number of their first codes."""
        words, first = self.words.read(block, turn), self.b.mul(turn, STRIP * self.strips)
        for strip in range(self.strips):
            at = self.b.add(first, STRIP * strip)
            yield self._weights(words, strip, self.numbers.strip(block, at)), at

    def _activations(self, place: Place, first: Value, cut: int) -> Value:
        """[32, columns] of x from code ``first`` on; zero past the rows and past the last code."""
        b, layout = self.b, Layout(2).local(STRIP, self.columns)
        ends = [b.index(self.length)] if cut else []
        if place.named is not None:
            x = b(t.LoadRows, self.x, place.named, first, *ends, layout=layout, dim=1, hint="x")
            return self._cast(x, self.made)
        bounds = [(1, "zero", place.rows), *((0, "zero", end) for end in ends)]
        x = b.load(self.x, [place.row, first], (1, 0), layout, bounds, hint="x")
        return self._cast(x, self.made)

    def _cast(self, x: Value, dtype: DType) -> Value:
        same = getattr(x.type, "dtype", None) == dtype
        return x if same else self.b(m.Cast, x, dtype=dtype, hint=x.hint)

    def _beside(
        self, at: int, block: Block, first: Value, strip: int, known: Sequence[Value]
    ) -> Beside:
        """What a strip is scaled by, and its zeros."""
        if self.numbers.single:
            return self.once[at]
        if not self.numbers.known:
            return self.numbers.strip(block, self.b.add(first, STRIP * strip))
        run = strip // self.numbers.run
        if not self.has_zeros:
            return Beside(known[run], None)
        return Beside(known[2 * run], known[2 * run + 1])

    def _block(
        self,
        words: Mapping[int, Value],
        x: Tiles,
        beside: list[Beside],
        total: Value,
        ones: Tiles,
    ) -> Value:
        """A block's total with the products of a turn's strips; ``ones``: each run's sums of
        activations."""
        b, scaled = self.b, self.on_sums and not self.numbers.single
        for number, run in enumerate(self._runs(len(x))):
            part = b.filled(0.0, F32, self.sums) if scaled else total
            for strip in run:
                w = self._weights(words, strip, beside[strip])
                part = b(t.Product, part, w, x[strip], hint="sum")
            if scaled:
                numbers = beside[run.start]
                part = self._without_zeros(part, numbers, ones[number] if ones else part)
                part = b(m.Fma, part, numbers.scale, total, hint="total")
            total = part
        return total

    def _weights(self, words: Mapping[int, Value], strip: int, beside: Beside) -> Value:
        """A strip of weights as a side of a product."""
        zero = None if self.zeros_on_sums else beside.zero
        if zero is not None and not self.decoder.wide:
            zero = self._cast(zero, self.decoder.narrow)
        w = self.decoder.strip(self.b, words, strip, zero, self.table)
        if not self.on_sums:
            w = self.b(m.Mul, self._cast(w, F32), beside.scale, hint="w")
        return self._cast(w, self.made)
