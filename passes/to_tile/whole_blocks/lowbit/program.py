"""The programs of a kernel with packed weights on a GPU.

A work item takes some blocks of weights and a block of rows of activations. With few rows several
work items share out k: each writes its sums, and the last of them to be done adds these up in their
order and does the rest, so that results are the same bits from call to call. Where a back end does
not count work items, a second program does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import BF16, F16, F32, I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.packing import STRIP
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.choices import DEFAULT, Choice, with_choice
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.lowbit.info import PackedProduct, packed_products
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES, require_tiles, table_of
from tilewright.passes.to_tile.whole_blocks.lowbit.product import Place, StripProduct
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import (
    ProductSchedule,
    product_schedule,
    strips_of,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.words import Block

COUNTERS = 1024  # blocks of results whose k is shared out, at most
FINISH_ROWS = 8  # of activations that a work item of the second program takes


@dataclass(frozen=True)
class PackedPrograms:
    """``main`` gives the results, or every part's sums, which ``finish`` takes before the inputs.
    ``tables``: what the codes of which products stand for, inputs of ``main`` after the others.
    ``sums``: how many buffers for every part's sums [parts, rows, columns] come then, and after
    them ``COUNTERS`` counters, which are 0 before and after."""

    main: Graph
    finish: Graph | None
    tables: tuple[tuple[float, ...], ...]
    sums: int = 0


def packed_programs(
    info: KernelInfo,
    units: dict[str, int],
    target: Target,
    rows: int,
    schedule: ProductSchedule | None = None,
    parts: int = 1,
    counting: bool = False,
) -> PackedPrograms:
    """The programs for up to ``rows`` rows (0: any number); ``counting``: one of them also where
    work items share out k. Raises UnsupportedError for forms that they do not cover, and for
    weights packed for another target."""
    products = packed_products(info.graph)
    for product in products:
        _check(product, units)
    chosen = schedule or default_product_schedule(info, target, rows, parts)
    if chosen.parts == 1:
        whole = _Program(info, products, chosen, units)
        return PackedPrograms(whole.whole(target), None, whole.tables)
    if counting:
        one = _Program(info, products, chosen, units)
        return PackedPrograms(one.together(target), None, one.tables, len(products))
    first, second = (_Program(info, products, chosen, units) for _ in range(2))
    return PackedPrograms(first.partial(target), second.finish(target), first.tables)


def default_product_schedule(
    info: KernelInfo, target: Target, rows: int, parts: int = 1
) -> ProductSchedule:
    """The schedule of a kernel's products where nothing else is asked for."""
    products = packed_products(info.graph)
    packings = tuple(p.packing for p in products)
    return product_schedule(packings, max(_bits(p) for p in products), target, rows, parts)


def packed_program(
    info: KernelInfo, units: dict[str, int], target: Target, rows: int, choice: Choice = DEFAULT
) -> Graph:
    """The program of a kernel that takes its own inputs only; ``choice``: fields of the schedule
    that are not the default's. Raises UnsupportedError for what the codes of a table need
    besides."""
    schedule = with_choice(default_product_schedule(info, target, rows), choice) if choice else None
    made = packed_programs(info, units, target, rows, schedule=schedule)
    if made.tables:
        raise UnsupportedError(
            f"{info.graph.name}: codes of a table on a GPU need it as an input: call "
            "tilewright.linear, or use a dtype of integers or floats"
        )
    return made.main


def decode_program(info: KernelInfo, target: Target) -> PackedPrograms:
    """The program that writes the weights [rows, k] of a kernel's only product in the dtype in
    which it is computed, rounded once; inputs are words, scales and zeros."""
    (product,) = packed_products(info.graph)
    units = {p.hint: 1 for p in info.graph.params}
    _check(product, units)
    strips = strips_of(product.packing, False)
    schedule = ProductSchedule(LANES, 1, strips, 4, 1)
    writer = _Program(info, (product,), schedule, units)
    return PackedPrograms(writer.decoded(target), None, writer.tables)


def _check(product: PackedProduct, units: dict[str, int]) -> None:
    loc = product.weights.loc
    require_tiles(product.packing, loc)
    if product.integer:
        raise UnsupportedError("activations in bytes on a GPU", loc)
    if any(units.get(x.hint) != 1 for x in product.weights.operands):  # whole vectors are read
        raise UnsupportedError("packed weights that are not contiguous, on a GPU", loc)


def _bits(product: PackedProduct) -> int:
    dtype = getattr(product.activations.type, "dtype", F32)
    return 16 if dtype in (BF16, F16) else 32


class _Program:
    """Writes one of the programs."""

    def __init__(
        self,
        info: KernelInfo,
        products: Sequence[PackedProduct],
        schedule: ProductSchedule,
        units: dict[str, int],
    ) -> None:
        self.info, self.products, self.schedule = info, products, schedule
        given = kernel_parameters(info.graph, units)
        self.sinks, count = given.sinks, len(given.sinks)
        self.inputs, self.outputs = given.values[:-count], given.values[-count:]
        self.state = LoweringState(info, schedule.plain(), given.buffers)
        self.b = self.state.build
        self.blocks = products[0].blocks
        self.tables: tuple[tuple[float, ...], ...] = ()
        self.table_params: tuple[Value, ...] = ()

    # ---- the programs

    def whole(self, target: Target) -> Graph:
        """All of k, and the results."""
        place = self._place(None)
        made = self._sums(place)
        for vector, block in enumerate(place.blocks):
            here = {value: tiles[vector] for value, tiles in made.items()}
            for sink in self.sinks:
                self._write(sink, block, place.row, self.schedule.rows, here)
        return self._graph(target, (*self.inputs, *self.table_params), self.outputs)

    def partial(self, target: Target) -> Graph:
        """A part of k, and its sums [parts, rows, columns] for every product."""
        sums = self._partial_sums()
        self._store_part(sums)
        return self._graph(target, (*self.inputs, *self.table_params), sums)

    def together(self, target: Target) -> Graph:
        """A part of k; and the results, by whoever is done last with its blocks and rows."""
        b, y = self.b, self.schedule
        sums = self._partial_sums()
        place = self._store_part(sums)
        counters = Value(BufferType((Size.of(COUNTERS),), I32, 0), "counters")
        row_blocks = b.div(b.add(place.rows, y.rows - 1), y.rows)
        row_block = b(t.BlockId, dim=2, hint="row_block")
        at = b.add(b.mul(b(t.BlockId, dim=0, hint="block"), row_blocks), row_block)
        last = b(t.LastOf, counters, at, count=y.parts, hint="last")
        with b.when_less(b.index(0), last):
            for block in place.blocks:
                height = y.height if block.lane is not None else LANES
                made = self._added_up(sums, block, place.row, place.rows, (height, y.rows))
                for sink in self.sinks:
                    self._write(sink, block, place.row, y.rows, made)
        inputs = (*self.inputs, *self.table_params, *sums, counters)
        return self._graph(target, inputs, self.outputs)

    def _store_part(self, sums: tuple[Value, ...]) -> Place:
        """Writes what a work item adds up."""
        part = self.b(t.BlockId, dim=1, hint="part")
        place = self._place(part)
        made = self._sums(place)
        for product, memory in zip(self.products, sums, strict=True):
            for block, tile in zip(place.blocks, made[product.result], strict=True):
                at = [part, place.row, block.lanes(self.b, block.number)]
                self.b.store(tile, memory, at, (-1, 1, 0), [(1, place.rows)])
        return place

    def _added_up(
        self, sums: tuple[Value, ...], block: Block, row: Value, rows: Value, shape: tuple[int, int]
    ) -> dict[Value, Value]:
        """All parts of the products' sums, one after the other."""
        b, made = self.b, {}
        for product, memory in zip(self.products, sums, strict=True):
            total: Value | None = None
            for part in range(self.schedule.parts):
                at = [b.index(part), row, block.lanes(b, block.number)]
                layout = Layout(2).local(*shape)
                x = b.load(memory, at, (-1, 1, 0), layout, [(1, "zero", rows)], hint="part")
                total = x if total is None else b(m.Add, total, x, hint="total")
            assert total is not None
            made[product.result] = total
        return made

    def finish(self, target: Target) -> Graph:
        """Parts added up one after the other, and the results."""
        b = self.b
        block = Block(b(t.BlockId, dim=0, hint="block"), None)
        row = b.mul(b(t.BlockId, dim=1, hint="row_block"), FINISH_ROWS)
        rows, sums = b.size(self.info.row_count), self._partial_sums()
        made = self._added_up(sums, block, row, rows, (LANES, FINISH_ROWS))
        for sink in self.sinks:
            self._write(sink, block, row, FINISH_ROWS, made)
        grid = ((self.blocks, 1), (self.info.row_count, FINISH_ROWS))
        return self._graph(target, (*sums, *self.inputs), self.outputs, grid, warps=4, stages=1)

    def decoded(self, target: Target) -> Graph:
        """The weights of the product as a matrix."""
        b, (product,) = self.b, self.products
        writer = self._writer(product, True)
        block = Block(b(t.BlockId, dim=0, hint="block"), None)
        turn = b(t.BlockId, dim=1, hint="turn")
        length = Size.of(product.length)
        shape = self.blocks * LANES, length
        out = Value(BufferType(shape, writer.made, 1), "w")
        for strip, first in writer.matrix(block, turn):
            at = [block.lanes(b, block.number), first]
            b.store(strip, out, at, (0, 1), [(1, b.size(length))])
        grid = ((self.blocks, 1), (length, STRIP * writer.strips))
        w = product.weights
        inputs = [self.state.buffers[v] for v in (w.words, w.scales, *w.more)]
        return self._graph(target, (*inputs, *self.table_params), (out,), grid)

    def _partial_sums(self) -> tuple[Value, ...]:
        shape = Size.of(self.schedule.parts), self.info.row_count, self.blocks * LANES
        count = range(len(self.products))
        return tuple(Value(BufferType(shape, F32, 2), f"sums_{at}") for at in count)

    def _graph(
        self,
        target: Target,
        inputs: tuple[Value, ...],
        outputs: tuple[Value, ...],
        grid: tuple[tuple[Size, int], ...] = (),
        warps: int = 0,
        stages: int = 0,
    ) -> Graph:
        y, graph = self.schedule, self.info.graph
        parts = ((Size.of(y.parts), 1),) if y.parts > 1 else ()
        whole = ((self.blocks * y.pieces, y.vectors), *parts, (self.info.row_count, y.rows))
        attrs = {
            "grid": grid or whole,
            "outputs": len(outputs),
            "target": target.name,
            "warps": warps or y.warps,
            "stages": stages or y.stages,
            "bulk": False,
        }
        body = Region((*inputs, *outputs), tuple(self.b.top.ops))
        types = [p.type for p in body.params if isinstance(p.type, BufferType)]
        known = {name for x in types for size in x.shape for name in size.names}
        sizes = tuple(name for name in graph.sizes if name in known)
        made = Graph("tile", graph.name, sizes, body, attrs)
        return canonicalise_graph(canonicalise_graph(made))

    # ---- pieces

    def _place(self, part: Value | None) -> Place:
        """Where the work item is: past the end the last block is computed, and written, again."""
        b, y = self.b, self.schedule
        last = b.sub(b.size(self.blocks * y.pieces), 1)
        first = b.mul(b(t.BlockId, dim=0, hint="block"), y.vectors)
        found = [first] if y.vectors == 1 else []
        found = found or [b.minimum(b.add(first, v), last) for v in range(y.vectors)]
        blocks = [Block(x, None) for x in found]
        if y.pieces > 1:
            lanes = [b.mul(b.mod(x, y.pieces), y.height) for x in found]
            each = zip(found, lanes, strict=True)
            blocks = [Block(b.div(x, y.pieces), lane) for x, lane in each]
        row = b.mul(b(t.BlockId, dim=1 + (y.parts > 1), hint="row_block"), y.rows)
        return Place(tuple(blocks), row, b.size(self.info.row_count), part)

    def _sums(self, place: Place) -> dict[Value, list[Value]]:
        return {p.result: self._writer(p).run(place) for p in self.products}

    def _writer(self, product: PackedProduct, on_weights: bool = False) -> StripProduct:
        """What writes a product, with a table in memory if its codes need one."""
        w, table = product.weights, None
        values = table_of(w.dtype, w.layout.bits)
        if values is not None:
            self.tables += (values,)
            size = Size.of(len(values))
            table = Value(BufferType((size,), F32, 0), f"table_{len(self.table_params)}")
            self.table_params += (table,)
        return StripProduct(self.state, product, self.schedule, table, on_weights)

    def _write(
        self, sink: s.Sink, block: Block, row: Value, rows: int, made: dict[Value, Value]
    ) -> None:
        """One block's part of a result, with what is done to it on the way."""
        state, b = self.state, self.b
        if len(self.info.rows) > 1:
            raise UnsupportedError("packed products of several row axes: flatten them", sink.loc)
        here = {axis.name: row for axis in self.info.rows}
        here[self.info.grid[0].name] = block.lanes(b, block.number)
        height = self.schedule.height if block.lane is not None else LANES

        def leaf(value: Value) -> Value | None:
            if value in made:
                return made[value]
            op = state.info.made.get(value)
            return self._read(op, here, (height, rows)) if isinstance(op, s.Source) else None

        value = state.expression(sink.x, leaf, {})
        indices, dims = self._along(sink, here)
        total = b.size(self.info.row_count)
        b.store(value, state.buffers[sink.result], indices, dims, [(1, total)] if 1 in dims else [])

    def _read(self, op: s.Source, here: dict[str, Value], shape: tuple[int, int]) -> Value:
        """A tile of something that goes into the results, such as a bias."""
        indices, dims = self._along(op, here)
        layout = Layout(2).local(*(n if d in dims else 1 for d, n in enumerate(shape)))
        bounds = [(1, "zero", self.b.size(self.info.row_count))] if 1 in dims else []
        return self.b.load(
            self.state.buffers[op.tensor], indices, dims, layout, bounds, hint=op.result.hint
        )

    def _along(
        self, op: s.Source | s.Sink, here: dict[str, Value]
    ) -> tuple[list[Value], list[int]]:
        """Where the tile starts in memory and which of its dimensions runs along which."""
        indices, runs = self.state.source_index(op, here)
        where = {self.info.grid[0].name: 0, **{a.name: 1 for a in self.info.rows}}
        return indices, [where.get(run, -1) for run in runs]
