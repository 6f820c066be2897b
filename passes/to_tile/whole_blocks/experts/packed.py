"""Products of sorted rows with experts' packed weights, on whole blocks.

    y[p, n] = function(sum over k of x[p, k] * w0[e, n, k] + b0) [* (the same with w1)] [* scale[p]]

A work item is a block of the plan's rows times a block of rows of its expert's weights, whose codes
become matrices as in any product with packed weights (``whole_blocks/lowbit``): they are the rows
of the product on matrix units, rows of x its columns. Experts may have weights of several kinds: an
item looks up which kind its expert has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.experts.packed_form import PackedBuffers, PackedForm, Parts
from tilewright.passes.to_tile.lowbit.tiles import as_f32
from tilewright.passes.to_tile.whole_blocks.experts.blocks import ROWS
from tilewright.passes.to_tile.whole_blocks.experts.items import block_of_rows, rows_of_x
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES, require_tiles, table_of
from tilewright.passes.to_tile.whole_blocks.lowbit.product import Place, StripProduct
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    MANY,
    ProductSchedule,
    product_schedule,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.words import Block

REGISTERS = 128  # fewer than a single product's: both loops of gate and up have what is left of k
FOR_ZEROS = 32  # sums of activations


def packed_blocks(form: PackedForm, target: Target, rows: int) -> ProductSchedule:
    """The sizes of blocks of a product whose plan has blocks of ``rows`` rows. Raises
    UnsupportedError for weights that are packed for something else.

    Of experts with few rows half a block of weights is a work item's: one token's gate and up would
    else be fewer work items than a GPU has multiprocessors, and nothing else shares out k here.
    """
    packings = [stack.weight.layout for kind in form.kinds for stack in kind]
    for packing in packings:
        require_tiles(packing)
    many = 0 if rows >= MANY else rows
    zeros = any(stack.weight.zeros is not None for kind in form.kinds for stack in kind)
    registers = REGISTERS - (FOR_ZEROS if zeros else 0)
    found = product_schedule(tuple(packings), form.x.bits, target, many, registers=registers)
    height = LANES // 2 if rows == ROWS[0] else found.height
    return replace(found, rows=rows, height=height)


@dataclass(frozen=True)
class PackedExperts:
    """``tables``: what the codes of which stacks stand for, inputs of ``program`` before its
    result."""

    program: Graph
    tables: tuple[tuple[float, ...], ...]


def packed_product_program(
    form: PackedForm, schedule: ProductSchedule, target: Target
) -> PackedExperts:
    """The tile program: blocks i32 [R, 3] (expert, first row, the row past the last), [tokens i32
    [P]], with several kinds kinds and slots i32 [E], x [P, K] (or [T, K] with tokens), then every
    stack's words [blocks, …], scales, zeros and factors f32 [E], then biases [E, N], scale f32 [P],
    tables f32 -> y [P, N]."""
    return _Packed(form, schedule, target).whole()


@dataclass(frozen=True)
class _Item:
    """The expert of a work item and its place in the stacks, its rows, and its piece of a block of
    weights."""

    expert: Value
    slot: Value
    first: Value
    last: Value
    block: Value
    lane: Value | None


class _Packed(PackedBuffers):
    def __init__(self, form: PackedForm, schedule: ProductSchedule, target: Target) -> None:
        super().__init__(form, LANES)
        self.schedule, self.target = schedule, target
        self.plan = self.param("blocks", ("R", 3), I32)
        self.tokens = self.param("tokens", ("P",), I32) if form.indirect else None
        self.add_lookup()
        self.x = self.floats(Size.of("T" if form.indirect else "P"))
        self.add_weights()
        self.biases = self.add_biases(form.bias)
        self.scale = self.param("scale", ("P",), F32) if form.scaled else None
        self.tables: dict[tuple[float, ...], Value] = {}

    def whole(self) -> PackedExperts:
        """The program with the tables that it needs."""
        b, y = self.build, self.schedule
        expert, first, last = block_of_rows(b, self.plan)
        with b.when_less(first, last):
            block, lane = b(t.BlockId, dim=1, hint="block"), None
            if y.pieces > 1:
                lane = b.mul(b.mod(block, y.pieces), y.height)
                block = b.div(block, y.pieces)
            layout = Layout(2).local(1, y.rows)
            rows = rows_of_x(b, self.tokens, first, last, layout)
            # the result comes after the tables, which are known when all is written
            out = Value(
                BufferType((Size.of("P"), Size.of(self.form.columns)), self.form.out, 1), "y"
            )

            def write(kind: Sequence[Parts], slot: Value) -> None:
                item = _Item(expert, slot, first, last, block, lane)
                self._write(item, self._sums(kind, item, rows), out)

            self.of_kind(expert, write)
        self.params.append(out)
        attrs = {
            "grid": ((Size.of("R"), 1), (Size.of(self.blocks * y.pieces), 1)),
            "outputs": 1,
            "target": self.target.name,
            "warps": y.warps,
            "stages": y.stages,
            "bulk": False,
        }
        body = Region(tuple(self.params), tuple(b.top.ops))
        graph = Graph("tile", "packed_experts", self.size_names, body, attrs)
        return PackedExperts(canonicalise_graph(canonicalise_graph(graph)), tuple(self.tables))

    def _sums(self, kind: Sequence[Parts], item: _Item, rows: Value) -> list[Value]:
        """f32 [height, rows]: what every product adds up, with its expert's factor."""
        b, found = self.build, []
        for parts in kind:
            factor = self.factor(parts, item.slot, Layout(2).local(1, 1))
            writer = self._writer(parts)
            for part in parts.stack.taken:
                number = b.add(self.first_block(parts, item.slot, part), item.block)
                place = Place((Block(number, item.lane),), item.first, item.last, None, rows)
                (total,) = writer.run(place)
                found.append(total if factor is None else b(m.Mul, total, factor, hint="sum"))
        return found

    def _writer(self, parts: Parts) -> StripProduct:
        product = self.product(parts, self.x)
        values = table_of(parts.weights.dtype, product.packing.bits)
        if values is not None and values not in self.tables:
            self.tables[values] = self.param(f"table{len(self.tables)}", (len(values),), F32)
        table = None if values is None else self.tables[values]
        return StripProduct(self, product, self.schedule, table)

    def _write(self, item: _Item, sums: list[Value], out: Value) -> None:
        """Results of a piece of a block, with what is done to sums on the way."""
        b, form, y = self.build, self.form, self.schedule
        column = b.mul(item.block, LANES)
        column = column if item.lane is None else b.add(column, item.lane)
        end = b.index(form.columns)
        for at, bias in enumerate(self.biases):
            assert form.bias is not None
            cut = [(0, "zero", end)] if self.cut else []
            layout = Layout(2).local(y.height, 1)
            x = b.load(bias, [item.expert, column], (-1, 0), layout, cut, hint="bias")
            sums[at] = b(m.Add, sums[at], as_f32(b, x, form.bias, F32), hint="sum")
        value = form.gate.emit(b, sums[0], sums[1] if len(sums) > 1 else None)
        if self.scale is not None:
            layout, cut = Layout(2).local(1, y.rows), [(1, "zero", item.last)]
            scale = b.load(self.scale, [item.first], (1,), layout, cut, hint="scale")
            value = b(m.Mul, value, scale, hint="y")
        if form.out != F32:
            value = b(m.Cast, value, dtype=form.out, hint="y")
        bounds = [(1, item.last), *([(0, end)] if self.cut else [])]
        b.store(value, out, [item.first, column], (1, 0), bounds)
