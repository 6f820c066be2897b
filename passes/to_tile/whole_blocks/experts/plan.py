"""Which rows go to which expert: a counting sort of the router's choices, without atomics.

    place of a choice = where its expert's rows begin + choices of its expert before it

Few choices are one work item's. With more, each of ``PARTS`` parts of the choices is counted by
itself by a first kernel; in the second, a part adds up what others counted. Both are the same for
any number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import BOOL, F32, I32, I64
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.emitter import Loop, TileBuilder
from tilewright.passes.to_tile.whole_blocks.experts.choices import (
    CHUNK,
    Choices,
    Chunk,
    PlanForm,
    as_i32,
    one_hot,
)
from tilewright.passes.to_tile.whole_blocks.experts.products import param
from tilewright.passes.to_tile.whole_blocks.schedule import LEAST, power_of_two

FEW = CHUNK  # choices that one work item sorts
PARTS = 128  # of more choices, about as many as a GPU has multiprocessors
EXPERTS = 64  # that are counted at once
SLOTS = 32  # blocks of rows that are made at once
WARPS = 8


def plan_program(form: PlanForm, few: bool, target: Target) -> Graph:
    """The tile program: ids int [T * k], weights float [T * k], [adapters i32 [T], map i32
    [A, base]], room bool [R], of which only the length is read, and, unless ``few``, counts i32
    [PARTS, experts] of ``count_program`` ->

    blocks i32 [R, 3]: the expert of each block of rows, its first row and the one past its last,
    in order; 0, 0, 0 past the last block; tokens i32 [T * k]: the row of x of each sorted row;
    places i32 [T, k]: the sorted row of each choice, T * k if it is of no expert, -1 if it is
    wrong; scales f32 [T * k]: weights as the rows lie. Sorted stably, rows of no expert last.
    """
    return _Plan(form, target).plan(few)


def count_program(form: PlanForm, target: Target) -> Graph:
    """The tile program: ids int [T * k], [adapters i32 [T], map i32 [A, base]] -> counts i32
    [PARTS, experts]: how many choices of each part are each expert's."""
    return _Plan(form, target).count()


class _Plan:
    def __init__(self, form: PlanForm, target: Target) -> None:
        self.b, self.form, self.target = TileBuilder(), form, target
        rows, each = Size.of("T"), Size.of(form.chosen)
        self.ids = param("ids", (rows * each,), form.ids)
        self.adapters: tuple[Value, ...] = ()
        if form.base:
            table = param("map", (Size.of("A"), Size.of(form.base)), I32)
            self.adapters = (param("adapters", (rows,), I32), table)
        self.counts = param("counts", (Size.of(PARTS), Size.of(form.experts)), I32)
        self.choices = Choices(self.b, form, self.ids, self.adapters)
        self.span = max(LEAST, min(EXPERTS, power_of_two(form.experts)))

    def _graph(self, name: str, params: tuple[Value, ...], outputs: int, parts: Size) -> Graph:
        grid: tuple[tuple[Size, int], ...] = ((parts, 1),)
        if name == "count_choices":
            grid = (*grid, (Size.of(self.form.experts), self.span))
        attrs = {
            "grid": grid,
            "outputs": outputs,
            "target": self.target.name,
            "warps": WARPS,
            "stages": 1,
            "bulk": False,
        }
        sizes = ("T", *(("A",) if self.form.base else ()), *(("R",) if outputs > 1 else ()))
        body = Region(params, tuple(self.b.top.ops))
        return canonicalise_graph(Graph("tile", name, sizes, body, attrs))

    # ---- counting

    def count(self) -> Graph:
        """The whole program that counts."""
        b = self.b
        part = b(t.BlockId, dim=0, hint="part")
        at = b.mul(b(t.BlockId, dim=1, hint="block"), self.span)
        start, end = self._part(part, self.choices.count, CHUNK)
        found = self._counted(start, end, at)
        b.store(found, self.counts, [part, at], (-1, 1), [(1, b.index(self.form.experts))])
        params = (self.ids, *self.adapters, self.counts)
        return self._graph("count_choices", params, 1, Size.of(PARTS))

    def _part(self, part: Value, count: Value, step: int) -> tuple[Value, Value]:
        """Where a part of ``count`` things begins and ends, in steps."""
        b = self.b
        each = b.div(b.add(count, PARTS * step - 1), PARTS * step)
        start = b.mul(part, b.mul(each, step))
        return start, b.minimum(b.add(start, b.mul(each, step)), count)

    def _counted(self, start: Value, end: Value, at: Value) -> Value:
        """i32 [1, span]: the choices from ``start`` to ``end`` of the experts from ``at`` on."""
        b, zeros = self.b, self.b.filled(0, I32, Layout(2).local(1, self.span))
        experts = self._experts(at)
        with b.loop(start, end, CHUNK, [zeros], hint="first") as loop:
            chunk = self.choices.read(loop.counter, end, 0)
            same = one_hot(b, chunk.expert, experts)
            found = b(t.Reduce, same, kind="sum", dim=0, hint="count")
            loop.next = (b(m.Add, loop.carried[0], found, hint="counts"),)
        return loop.results[0]

    def _experts(self, at: Value) -> Value:
        """i32 [1, span]: the experts from ``at`` on; -1 past the last."""
        b = self.b
        layout = Layout(2).local(1, self.span)
        here = b(m.Cast, b(t.Coordinate, dim=1, layout=layout), dtype=I32, hint="here")
        here = b(m.Add, here, as_i32(b, at), hint="expert")
        if self.form.experts % self.span == 0:
            return here
        there = b(m.Compare, here, b.number(self.form.experts, I32), relation="lt", hint="there")
        return b(m.Select, there, here, b.number(-1, I32), hint="expert")

    # ---- sorting

    def plan(self, few: bool) -> Graph:
        """The whole program that sorts."""
        b, form = self.b, self.form
        rows, each = Size.of("T"), Size.of(form.chosen)
        every = rows * each
        weights = param("weights", (every,), form.weights)
        room = param("room", (Size.of("R"),), BOOL)
        self.blocks = param("blocks", (Size.of("R"), Size.of(3)), I32)
        self.tokens = param("tokens", (every,), I32)
        self.places = param("places", (rows, each), I32)
        self.scales = param("scales", (every,), F32)
        self.weights, count, slots = weights, self.choices.count, b.size(Size.of("R"))
        self.part = self.start = slot = b.index(0)
        self.all: Chunk | None = None
        if few:
            self.all = self.choices.read(self.start, count, 0)
            self._sort(self.all, count)
        else:
            self.part = b(t.BlockId, dim=0, hint="part")
            self.start, end = self._part(self.part, count, CHUNK)
            slot, slots = self._part(self.part, slots, SLOTS)
            with b.loop(self.start, end, CHUNK, hint="first") as loop:
                self._sort(self.choices.read(loop.counter, end, 0), end)
        with b.loop(slot, slots, SLOTS, hint="slot") as loop:
            self._make_blocks(loop.counter, slots)
        counts = () if few else (self.counts,)
        outputs = self.blocks, self.tokens, self.places, self.scales
        params = (self.ids, weights, *self.adapters, room, *counts, *outputs)
        return self._graph("plan_experts", params, 4, Size.of(1 if few else PARTS))

    def _totals(self, at: Value) -> tuple[Value, Value]:
        """i32 [1, span]: how many choices there are of each expert from ``at`` on, and how many of
        those come before this part."""
        b = self.b
        if self.all is not None:
            same = one_hot(b, self.all.expert, self._experts(at))
            zeros = b.filled(0, I32, Layout(2).local(1, self.span))
            return b(t.Reduce, same, kind="sum", dim=0, hint="total"), zeros
        layout = Layout(2).local(PARTS, self.span)
        bounds = [(1, "zero", b.index(self.form.experts))]
        each = b.load(self.counts, [b.index(0), at], (0, 1), layout, bounds, hint="each")
        parts = b(t.Coordinate, dim=0, layout=Layout(2).local(PARTS, 1))
        parts = b(m.Cast, parts, dtype=I32, hint="parts")
        early = b(m.Compare, parts, as_i32(b, self.part), relation="lt", hint="early")
        before = b(m.Select, early, each, b.number(0, I32), hint="before")
        return (
            b(t.Reduce, each, kind="sum", dim=0, hint="total"),
            b(t.Reduce, before, kind="sum", dim=0, hint="before"),
        )

    @contextmanager
    def _over_experts(self, carried: list[Value]) -> Iterator[Loop]:
        """A loop over blocks of experts. Compilers must not know how many there are: all of them
        written out would take more registers than there are."""
        b, experts = self.b, self.form.experts
        end = b.minimum(b.mul(b.size(Size.of("R")), experts), experts)  # R is not 0
        with b.loop(b.index(0), end, self.span, carried, hint="expert") as loop:
            yield loop

    def _sort(self, chunk: Chunk, end: Value) -> None:
        """Finds the places of a chunk of choices."""
        b, form, column = self.b, self.form, Layout(2).local(CHUNK, 1)
        one = Layout(2)
        start = [b.filled(0, I32, column), b.filled(0, I32, one), b.filled(0, I32, one)]
        with self._over_experts(start) as loop:
            found, total, prior = loop.carried
            counts, before = self._totals(loop.counter)
            begin = self._begin(total, counts)
            here = b(m.Add, begin, before, hint="begin")
            same = b(m.Compare, chunk.expert, self._experts(loop.counter), relation="eq")
            here = b(m.Select, same, here, b.number(0, I32), hint="begin")
            loop.next = (
                b(m.Add, found, b(t.Reduce, here, kind="sum", dim=1), hint="found"),
                self._more(total, counts),
                self._more(prior, before),
            )
        found, total, prior = loop.results
        # rows of no expert come after all others, in their order
        rest = b(m.Add, total, b(m.Sub, as_i32(b, self.start), prior), hint="rest")
        none = b(m.Compare, chunk.expert, b.number(form.experts, I32), relation="eq", hint="none")
        found = b(m.Select, none, rest, found, hint="found")
        place = b(m.Add, found, self._rank(chunk, end), hint="place")
        self._put(chunk, place, none, end)

    def _rank(self, chunk: Chunk, end: Value) -> Value:
        """i32 [CHUNK, 1]: how many choices of this part come before each that are of its expert."""
        b, zeros = self.b, self.b.filled(0, I32, Layout(2).local(CHUNK, 1))
        if self.all is not None:
            return self._before(chunk, self.choices.read(self.start, end, 1))
        with b.loop(self.start, b.add(chunk.first, CHUNK), CHUNK, [zeros], hint="other") as loop:
            found = self._before(chunk, self.choices.read(loop.counter, end, 1))
            loop.next = (b(m.Add, loop.carried[0], found, hint="rank"),)
        return loop.results[0]

    def _before(self, chunk: Chunk, other: Chunk) -> Value:
        """i32 [CHUNK, 1]: how many of other choices come before each and are of its expert."""
        b = self.b
        early = b(m.Compare, other.at, chunk.at, relation="lt", hint="early")
        same = b(m.Compare, other.expert, chunk.expert, relation="eq", hint="same")
        both = b(m.Cast, b(m.And, early, same), dtype=I32, hint="both")
        return b(t.Reduce, both, kind="sum", dim=1, hint="rank")

    def _put(self, chunk: Chunk, place: Value, none: Value, end: Value) -> None:
        """Writes what the places of a chunk's choices tell."""
        b, column = self.b, Layout(2).local(CHUNK, 1)
        seen = b(m.Select, none, as_i32(b, self.choices.count), place, hint="seen")
        seen = b(m.Select, chunk.wrong, b.number(-1, I32), seen, hint="seen")
        inside = chunk.inside
        at = b(m.Cast, chunk.at, dtype=I64, hint="at")
        b.effect(t.Scatter, seen, self.places, b.index(0), at, inside)
        at, token = b(m.Cast, place, dtype=I64, hint="at"), self.choices.token(chunk)
        b.effect(t.Scatter, token, self.tokens, b.index(0), at, inside)
        cut = [(0, "zero", end)]
        weight = b.load(self.weights, [chunk.first], (0,), column, cut, hint="weight")
        if self.form.weights != F32:
            weight = b(m.Cast, weight, dtype=F32, hint="weight")
        b.effect(t.Scatter, weight, self.scales, b.index(0), at, inside)

    def _begin(self, total: Value, counts: Value) -> Value:
        """i32 [1, span]: where what is counted begins, if ``total`` comes before all of it."""
        b = self.b
        ends = b(m.Add, b(t.Scan, counts, dim=1), total, hint="ends")
        return b(m.Sub, ends, counts, hint="begin")

    def _more(self, total: Value, counts: Value) -> Value:
        return self.b(m.Add, total, self.b(t.Reduce, counts, kind="sum", dim=1), hint="total")

    # ---- blocks of rows

    def _make_blocks(self, first: Value, end: Value) -> None:
        """Which rows of which expert some blocks are."""
        b, size = self.b, self.form.rows
        layout, one = Layout(2).local(SLOTS, 1), Layout(2)
        here = b(m.Cast, b(t.Coordinate, dim=0, layout=layout), dtype=I32, hint="here")
        slot = b(m.Add, here, as_i32(b, first), hint="slot")
        zeros = [b.filled(0, I32, layout)] * 3 + [b.filled(0, I32, one)] * 2
        with self._over_experts(zeros) as loop:
            *found, rows, blocks = loop.carried
            counts, _ = self._totals(loop.counter)
            begin = self._begin(rows, counts)
            shift = b.number(size.bit_length() - 1, I32)
            whole = b(m.Add, counts, b.number(size - 1, I32))
            needed = b(m.ShiftRightSigned, whole, shift, hint="needed")
            block = self._begin(blocks, needed)
            mine = b(m.Compare, block, slot, relation="le", hint="mine")
            past = b(m.Add, block, needed, hint="past")
            mine = b(m.And, mine, b(m.Compare, slot, past, relation="lt"), hint="mine")
            row = b(m.Mul, b(m.Sub, slot, block), b.number(size, I32))
            row = b(m.Add, begin, row, hint="row")
            last = b(m.Min, b(m.Add, row, b.number(size, I32)), b(m.Add, begin, counts))
            each = self._experts(loop.counter), row, last
            loop.next = (
                *(self._chosen(x, mine, value) for x, value in zip(found, each, strict=True)),
                self._more(rows, counts),
                self._more(blocks, needed),
            )
        for i, value in enumerate(loop.results[:3]):
            b.store(value, self.blocks, [first, b.index(i)], (0, -1), [(0, end)])

    def _chosen(self, before: Value, mine: Value, value: Value) -> Value:
        """Adds each block's own number."""
        b = self.b
        own = b(m.Select, mine, value, b.number(0, I32), hint="own")
        return b(m.Add, before, b(t.Reduce, own, kind="sum", dim=1), hint="own")
