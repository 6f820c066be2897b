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
from tilewright.ir.dtypes import F32, I32, U8, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.packing import QUAD, Packing
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import Axis, BufferType, StreamType, TensorType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.expand_math import expand_math_graph
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.passes.to_tile.experts.writer import item_rows
from tilewright.passes.to_tile.lowbit.choose import product_writer
from tilewright.passes.to_tile.lowbit.info import PackedProduct, WeightForm
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule, packed_schedule
from tilewright.passes.to_tile.lowbit.tiles import Place, as_f32

FEW = 2
ITEMS = 4  # of an expert with few rows: more make workers equally busy, fewer read longer pieces
CLASSES = (1, FEW, 4, 0)  # rows that an expert with some has, about; 0: many


@dataclass(frozen=True)
class Stack:
    """Packed matrices of some experts in one tensor, ``parts`` of each expert (gate and up), of
    which ``taken`` are multiplied. ``integer``: with activations as bytes. ``factor``: times a
    number of each expert."""

    weight: WeightForm
    integer: bool
    parts: int = 1
    taken: tuple[int, ...] = (0,)
    factor: bool = False


Kind = tuple[Stack, ...]


@dataclass(frozen=True)
class PackedForm:
    """A grouped product of ``columns`` results of ``length`` products each, with weights of
    ``kinds``, each of one product in all or two, gate and up. ``x``: dtype of activations that are
    no bytes; ``bias`` dtype or None; ``scaled``: times a number of each row. ``indirect``: rows of
    x are not sorted."""

    length: int
    columns: int
    kinds: tuple[Kind, ...]
    x: DType
    gate: GateFunction
    bias: DType | None
    scaled: bool
    out: DType
    indirect: bool

    @property
    def products(self) -> int:
        return sum(len(stack.taken) for stack in self.kinds[0])


def reads_floats(kinds: Sequence[Kind]) -> bool:
    """Whether some product reads x itself."""
    return not all(stack.integer for kind in kinds for stack in kind)


def byte_groups(kinds: Sequence[Kind], length: int) -> tuple[int, ...]:
    """The sizes of groups in which some product reads x as bytes."""
    groups = (_group(w, length) for kind in kinds for w in kind if w.integer)
    return tuple(dict.fromkeys(groups))


def _group(stack: Stack, length: int) -> int:
    """Activations that share a scale: those of the weights' group."""
    return max(1, min(stack.weight.layout.group, length))


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
    names = dict.fromkeys(n for p in writer.params for z in p.type.shape for n in z.names)  # type: ignore[union-attr]
    graph = Graph("tile", "packed_experts", tuple(names), body, attrs)
    return canonicalise_graph(expand_math_graph(canonicalise_graph(graph)))


def _span(schedule: PackedSchedule, blocks: int) -> int:
    """Blocks of an item: with few rows several times as many as it works on at once, so that it
    knows what it will read next."""
    steps = -(-blocks // (ITEMS * schedule.vectors)) if schedule.prefetch else 1
    return steps * schedule.vectors


@dataclass
class _Parts:
    """A stack's weights as a product reads them, and the factor of each of its experts."""

    stack: Stack
    weights: StreamDequantize
    factor: Value | None


@dataclass(frozen=True)
class Who:
    """The expert of a work item, its place in the stacks, and its rows."""

    expert: Value
    slot: Value
    first: Value
    last: Value


class _Experts:
    """Writes a program. ``build`` and ``buffers`` are what products of packed weights work in."""

    def __init__(self, form: PackedForm, target: Target, rows: int) -> None:
        self.build, self.buffers = TileBuilder(), dict[Value, Value]()
        self.form, self.target = form, target
        self.schedule = expert_schedule(target, form, rows)
        self.shapes, lanes = self.schedule.shapes, target.lanes
        self.blocks, self.cut = -(-form.columns // lanes), form.columns % lanes > 0
        self.span = _span(self.schedule, self.blocks)  # blocks of an item
        self.params: list[Value] = []
        unsorted = reads_unsorted(target, form, rows)
        self.x_rows = Size.of("T" if unsorted else "P")
        self.active = self.param("active", ("A",), I32)
        self.starts = self.param("starts", ("S",), I32)
        self.tokens = self.param("tokens", ("P",), I32) if unsorted else None
        lookup = ("kinds", "slots") if len(form.kinds) > 1 else ()
        self.lookup = [self.param(name, ("E",), I32) for name in lookup]
        self.x = self._floats() if reads_floats(form.kinds) else None
        self.bytes = {group: self._bytes(group) for group in byte_groups(form.kinds, form.length)}
        self.kinds = [
            [self._parts(stack, f"{k}_{i}") for i, stack in enumerate(kind)]
            for k, kind in enumerate(form.kinds)
        ]
        self.biases: list[Value] = []
        if form.bias is not None:
            shape = ("E", form.columns)
            count = range(form.products)
            self.biases = [self.param(f"bias{i}", shape, form.bias, unit=-1) for i in count]
        self.scale = self.param("scale", ("P",), F32) if form.scaled else None
        self.out = self.param("y", ("P", form.columns), form.out)

    # ---- what is read

    def param(
        self, name: str, shape: Sequence[int | str | Size], dtype: DType, unit: int | None = None
    ) -> Value:
        sizes = tuple(Size.of(size) for size in shape)
        own = len(sizes) - 1 if unit is None else unit
        self.params.append(Value(BufferType(sizes, dtype, own), name))
        return self.params[-1]

    def tensor(self, name: str, shape: Sequence[int | str | Size], dtype: DType) -> Value:
        """A parameter as products name it."""
        buffer = self.param(name, shape, dtype)
        value = Value(TensorType(tuple(Size.of(size) for size in shape), dtype), name)
        self.buffers[value] = buffer
        return value

    def _stream(self, rows: Size, dtype: DType) -> StreamType:
        return StreamType((Axis("n", rows),), (Axis("k", Size.of(self.form.length)),), dtype)

    def _floats(self) -> s.Source:
        x = self.tensor("x", (self.x_rows, self.form.length), self.form.x)
        return s.Source(x, dims=(("n",), ("k",)), type=self._stream(self.x_rows, self.form.x))

    def _bytes(self, group: int) -> StreamDequantize:
        """x in groups of bytes."""
        packing = Packing.quads(8, 1, group)
        groups = packing.groups(self.form.length)
        width = groups * packing.padded_group // QUAD
        parts = [
            self.tensor(f"codes{group}", (self.x_rows, width), I32),
            self.tensor(f"steps{group}", (self.x_rows, groups), F32),
            self.tensor(f"sums{group}", (self.x_rows, groups), I32),
        ]
        return StreamDequantize(
            *parts,
            packing=str(packing),
            dtype=U8,
            dims=(("n",), ("k",)),
            type=self._stream(self.x_rows, F32),
            signed=True,
            extra="sums",
        )

    def _parts(self, stack: Stack, name: str) -> _Parts:
        weight, packing = stack.weight, stack.weight.layout
        if packing.lanes != self.target.lanes:
            raise UnsupportedError(
                f"weights are packed for {packing.lanes} lanes, the target has {self.target.lanes}"
            )
        blocks = Size.of(f"B{name}")
        _, chunks, words, lanes = packing.word_shape(1, self.form.length)
        beside = (blocks, packing.groups(self.form.length) * lanes)
        given = [
            self.tensor(f"words{name}", (blocks, chunks * words * lanes), I32),
            self.tensor(f"scales{name}", beside, weight.scales),
        ]
        if weight.zeros is not None:
            given.append(self.tensor(f"zeros{name}", beside, weight.zeros))
        op = StreamDequantize(
            *given,
            packing=weight.packing,
            dtype=weight.dtype,
            dims=(("n",), ("k",)),
            type=self._stream(blocks * lanes, F32),
            zero=weight.zero,
            extra="" if weight.zeros is None else "zeros",
            scale=weight.scale_dtype,
        )
        factor = self.param(f"factor{name}", (f"F{name}",), F32) if stack.factor else None
        return _Parts(stack, op, factor)

    # ---- what is done

    def item(self) -> None:
        b = self.build
        expert, first, last = item_rows(b, self.active, self.starts)
        with b.when_less(first, last):
            if not self.lookup:
                self.columns(self.kinds[0], Who(expert, expert, first, last))
                return
            kind, slot = (b(t.Read, table, expert, hint="kind") for table in self.lookup)
            for at, parts in enumerate(self.kinds):
                with b.when_less(b.index(at - 1), kind), b.when_less(kind, b.index(at + 1)):
                    self.columns(parts, Who(expert, slot, first, last))

    def columns(self, kind: Sequence[_Parts], who: Who) -> None:
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
        self, kind: Sequence[_Parts], who: Who, blocks: Sequence[Value], following: Sequence[Value]
    ) -> None:
        """All rows of an expert; ``following``: blocks that are next."""
        with self.build.loop(who.first, who.last, self.schedule.rows, hint="row") as row:
            self.tile(kind, who, row.counter, blocks, following)

    def tile(
        self,
        kind: Sequence[_Parts],
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
            stack, factor = parts.stack, self.factor(parts, who.slot)
            first = b.mul(b.mul(who.slot, stack.parts), self.blocks)
            places = [self.at(first, part, blocks) for part in stack.taken]
            ahead = [*places[1:], self.at(first, stack.taken[0], following)]
            for here, later in zip(places, ahead if following else [()] * len(places), strict=True):
                place = Place(source, who.last, here, later)
                writer = product_writer(self, self.product(parts), self.schedule, self.target)
                found = writer.run(place)
                if factor is not None:
                    found = [b(m.Mul, tile, factor, hint="sum") for tile in found]
                sums.append(found)
        for vector, block in enumerate(blocks):
            made = [tiles[vector] for tiles in sums]
            self.write(made, who, row, b.mul(block, self.shapes.lanes))

    def at(self, first: Value, part: int, blocks: Sequence[Value]) -> tuple[Value, ...]:
        """The blocks of one matrix of an expert whose blocks begin at ``first``."""
        b = self.build
        return tuple(b.add(b.add(first, part * self.blocks), block) for block in blocks)

    def factor(self, parts: _Parts, slot: Value) -> Value | None:
        """[1, 1]: the expert's factor."""
        if parts.factor is None:
            return None
        return self.build.load(parts.factor, [slot], (-1,), self.shapes.vector.collapse(1))

    def product(self, parts: _Parts) -> PackedProduct:
        stack = parts.stack
        x = self.bytes[_group(stack, self.form.length)] if stack.integer else self.x
        assert x is not None
        return PackedProduct(parts.weights.result, parts.weights, x)

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
