"""Products of sorted rows with experts' packed weights.

    y[p, n] = function(sum over k of x[p, k] * w0[active[i], n, k] + b0) [* (the same with w1)]
              [* scale[p]]                                 for starts[i] <= p < starts[i + 1]

A work item is some blocks of rows of one expert's weights for all of the expert's rows of x: what
it reads of the weights comes from memory once. Experts may have weights of several kinds: an item
looks up which kind its expert has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.expand_math import expand_math_graph
from tilewright.passes.to_tile.experts.packed_form import (
    PackedBuffers,
    PackedForm,
    Parts,
    Stack,
    activation_group,
    byte_groups,
    reads_floats,
)
from tilewright.passes.to_tile.experts.writer import item_rows
from tilewright.passes.to_tile.lowbit.choose import product_writer
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule, packed_schedule
from tilewright.passes.to_tile.lowbit.tiles import Place, as_f32

FEW = 2
ITEMS = 4  # of an expert with few rows: more make workers equally busy, fewer read longer pieces
CLASSES = (1, FEW, 4, 0)  # rows that an expert with some has, about; 0: many


def expert_schedule(target: Target, form: PackedForm, rows: int) -> PackedSchedule:
    """Tiles for experts that have about ``rows`` rows each (one of ``CLASSES``)."""
    # sums of gate that wait for those of up leave their registers just once
    schedule = packed_schedule(target, rows, 1)
    most = min(schedule.vectors, -(-form.columns // schedule.lanes))
    if schedule.rows > FEW and reads_floats(form.kinds) and form.x == F32:
        most = 1  # numbers of one vector only are taken from memory by the multiplication itself
    return replace(schedule, vectors=max(1, most))


def reads_unsorted(target: Target, form: PackedForm, rows: int) -> bool:
    """Whether a program for ``rows`` finds rows of x by their numbers: one at a time."""
    return form.indirect and expert_schedule(target, form, rows).rows == 1


def packed_program(form: PackedForm, target: Target, rows: int) -> Graph:
    """The tile program: active i32 [A], starts i32 [S], if it reads unsorted rows tokens i32 [P],
    with several kinds kinds and slots i32 [E], x [R, K] if it is read, for every group size codes
    i32 [R, …], steps f32 and sums i32 [R, groups], then every stack's words [blocks, …], scales,
    zeros and factors f32 [E], then biases [E, N], then scale f32 [P] -> y [P, N]; R is P, or T."""
    writer = _Experts(form, target, rows)
    writer.item()
    blocks = Size.of(writer.blocks)
    body = Region(tuple(writer.params), tuple(writer.build.top.ops))
    attrs = {
        "grid": ((Size.of("A"), 1), (blocks, writer.span)),
        "outputs": 1,
        "target": target.name,
    }
    graph = Graph("tile", "packed_experts", writer.size_names, body, attrs)
    return canonicalise_graph(expand_math_graph(canonicalise_graph(graph)))


def _span(schedule: PackedSchedule, blocks: int) -> int:
    """Blocks of an item: with few rows several times as many as it works on at once, so that it
    knows what it will read next."""
    steps = -(-blocks // (ITEMS * schedule.vectors)) if schedule.prefetch else 1
    return steps * schedule.vectors


@dataclass(frozen=True)
class Who:
    """The expert of a work item, its place in the stacks, and its rows."""

    expert: Value
    slot: Value
    first: Value
    last: Value


class _Experts(PackedBuffers):
    """Writes a program."""

    def __init__(self, form: PackedForm, target: Target, rows: int) -> None:
        super().__init__(form, target.lanes)
        self.target = target
        self.schedule = expert_schedule(target, form, rows)
        self.shapes = self.schedule.shapes
        self.span = _span(self.schedule, self.blocks)  # blocks of an item
        unsorted = reads_unsorted(target, form, rows)
        x_rows = Size.of("T" if unsorted else "P")
        self.active = self.param("active", ("A",), I32)
        self.starts = self.param("starts", ("S",), I32)
        self.tokens = self.param("tokens", ("P",), I32) if unsorted else None
        self.add_lookup()
        self.x = self.floats(x_rows) if reads_floats(form.kinds) else None
        groups = byte_groups(form.kinds, form.length)
        self.in_bytes = {group: self.rounded(x_rows, group) for group in groups}
        self.add_weights()
        self.biases = self.add_biases(form.bias)
        self.scale = self.param("scale", ("P",), F32) if form.scaled else None
        self.out = self.param("y", ("P", form.columns), form.out)

    # ---- what is done

    def item(self) -> None:
        b = self.build
        expert, first, last = item_rows(b, self.active, self.starts)
        with b.when_less(first, last):
            self.of_kind(
                expert, lambda kind, slot: self.columns(kind, Who(expert, slot, first, last))
            )

    def columns(self, kind: Sequence[Parts], who: Who) -> None:
        """The item's blocks, for all rows of its expert."""
        b, step = self.build, self.schedule.vectors
        start = b.mul(b(t.BlockId, dim=1, hint="block"), self.span)
        if self.span == step:
            self.rows(kind, who, self.some(start), ())
            return
        stop = b.minimum(b.add(start, self.span), self.blocks)
        with b.loop(start, stop, step, hint="block") as loop:
            here = loop.counter
            following = b.minimum(b.add(here, step), b.sub(stop, 1))
            self.rows(kind, who, self.some(here), self.some(following))

    def some(self, first: Value) -> list[Value]:
        """A vector's blocks each; past the end the last one is computed, and written, again."""
        b, count = self.build, self.schedule.vectors
        return [b.minimum(b.add(first, v), self.blocks - 1) for v in range(count)]

    def rows(
        self, kind: Sequence[Parts], who: Who, blocks: Sequence[Value], following: Sequence[Value]
    ) -> None:
        """All rows of an expert; ``following``: blocks that are next."""
        with self.build.loop(who.first, who.last, self.schedule.rows, hint="row") as row:
            self.tile(kind, who, row.counter, blocks, following)

    def tile(
        self,
        kind: Sequence[Parts],
        who: Who,
        row: Value,
        blocks: Sequence[Value],
        following: Sequence[Value],
    ) -> None:
        """A register tile of rows for every block, from products to results."""
        b = self.build
        source = row if self.tokens is None else b(t.Read, self.tokens, row, hint="token")
        sums = []
        for parts in kind:
            taken = parts.stack.taken
            factor = self.factor(parts, who.slot, self.shapes.vector.collapse(1))
            places = [self.at(parts, who, part, blocks) for part in taken]
            ahead = [*places[1:], self.at(parts, who, taken[0], following)]
            for here, later in zip(places, ahead if following else [()] * len(places), strict=True):
                place = Place(source, who.last, here, later)
                product = self.product(parts, self.activations(parts.stack))
                writer = product_writer(self, product, self.schedule, self.target)
                found = writer.run(place)
                if factor is not None:
                    found = [b(m.Mul, tile, factor, hint="sum") for tile in found]
                sums.append(found)
        for vector, block in enumerate(blocks):
            made = [tiles[vector] for tiles in sums]
            self.write(made, who, row, b.mul(block, self.shapes.lanes))

    def at(self, parts: Parts, who: Who, part: int, blocks: Sequence[Value]) -> tuple[Value, ...]:
        """The blocks of one matrix of an expert."""
        if not blocks:
            return ()
        first = self.first_block(parts, who.slot, part)
        return tuple(self.build.add(first, block) for block in blocks)

    def activations(self, stack: Stack) -> s.Source | StreamDequantize:
        """What a stack is multiplied with."""
        if stack.integer:
            return self.in_bytes[activation_group(stack, self.form.length)]
        assert self.x is not None
        return self.x

    def write(self, sums: Sequence[Value], who: Who, row: Value, column: Value) -> None:
        """One block of results, with what is done to it on the way."""
        b, form, shapes, last = self.build, self.form, self.shapes, who.last
        values, end = list(sums), b.index(form.columns)
        for at, bias in enumerate(self.biases):
            bounds = [(1, "clamp", end)] if self.cut else []
            x = b.load(bias, [who.expert, column], (-1, 1), shapes.vector, bounds, hint="bias")
            assert form.bias is not None
            values[at] = b(m.Add, values[at], as_f32(b, x, form.bias, F32), hint="sum")
        y = form.gate.emit(b, values[0], values[1] if len(values) > 1 else None)
        if self.scale is not None:
            bounds = [(0, "clamp", last)] if shapes.rows > 1 else []
            scale = b.load(self.scale, [row], (0,), shapes.column, bounds, hint="scale")
            y = b(m.Mul, y, scale, hint="y")
        if form.out != F32:
            y = b(m.Cast, y, dtype=form.out, hint="y")
        limits = [(0, last)] if shapes.rows > 1 else []
        limits += [(1, end)] if self.cut else []
        b.store(y, self.out, [row, column], (0, 1), limits)
