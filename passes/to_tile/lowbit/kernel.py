"""The program of one work item of a kernel with packed weights."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F16
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.to_tile.lowbit.choose import product_writer
from tilewright.passes.to_tile.lowbit.grouped import GroupedProduct
from tilewright.passes.to_tile.lowbit.info import PackedProduct, packed_products
from tilewright.passes.to_tile.lowbit.schedule import PackedSchedule
from tilewright.passes.to_tile.lowbit.tiles import Place
from tilewright.passes.to_tile.state import LoweringState


class PackedKernel:
    """Lowers one kernel by a schedule."""

    def __init__(self, state: LoweringState, target: Target, schedule: PackedSchedule) -> None:
        self.state, self.b, self.target = state, state.build, target
        self.products = packed_products(state.info.graph)
        self.schedule = schedule
        self.blocks: Size = self.products[0].blocks
        lanes = self.products[0].packing.lanes
        if lanes != target.lanes:
            raise UnsupportedError(
                f"weights are packed for {lanes} lanes, the target has {target.lanes}"
            )
        if any(getattr(p.activations.type, "dtype", None) == F16 for p in self.products):
            raise UnsupportedError("activations in f16 beside packed weights on a CPU: cast to f32")
        self.shapes = self.schedule.shapes

    @property
    def grid(self) -> list[tuple[Size, int]]:
        y = self.schedule
        return [(self.blocks, y.vectors), (self.state.info.row_count, y.item_rows)]

    def lower(self, sinks: Sequence[s.Sink]) -> None:
        b, y = self.b, self.schedule
        last = b.sub(b.size(self.blocks), 1)
        first = b.mul(b(t.BlockId, dim=0, hint="blocks"), y.vectors)
        # past the end the last block is computed again, and written again
        blocks = tuple(b.minimum(b.add(first, v), last) for v in range(y.vectors))
        total = b.size(self.state.info.row_count)
        start = b.mul(b(t.BlockId, dim=1, hint="rows"), y.item_rows)
        stop = b.minimum(b.add(start, y.item_rows), total)
        if y.item_rows == y.rows:
            self.tile(Place(start, total, blocks), sinks)
            return
        with b.loop(start, stop, y.rows, hint="row") as loop:
            self.tile(Place(loop.counter, total, blocks), sinks)

    def tile(self, place: Place, sinks: Sequence[s.Sink]) -> None:
        sums = {p.result: self.product(p).run(place) for p in self.products}
        for vector, block in enumerate(place.blocks):
            made = {value: tiles[vector] for value, tiles in sums.items()}
            for sink in sinks:
                self.write(sink, place, block, made)

    def product(self, product: PackedProduct) -> GroupedProduct:
        return product_writer(self.state, product, self.schedule, self.target)

    def write(self, sink: s.Sink, place: Place, block: Value, made: dict[Value, Value]) -> None:
        """One vector's part of a result, with what is done to it on the way."""
        state, b = self.state, self.b
        row_axes, weight_axis = state.info.rows, state.info.grid[0].name
        here = state.split_position(place.row, row_axes)
        here[weight_axis] = b.mul(block, self.shapes.lanes)

        def leaf(value: Value) -> Value | None:
            if value in made:
                return made[value]
            op = state.info.made.get(value)
            return self.read(op, here, place) if isinstance(op, s.Source) else None

        value = state.expression(sink.x, leaf, {})
        buffer = state.buffers[sink.result]
        indices, dims = self.along(sink, here)
        bounds = [(0, place.total)] if self.shapes.rows > 1 and 0 in dims else []
        b.store(value, buffer, indices, dims, bounds)

    def read(self, op: s.Source, here: dict[str, Value], place: Place) -> Value:
        """A tile of something that goes into the results, such as a bias."""
        indices, dims = self.along(op, here)
        rows, vector = 0 in dims, 1 in dims
        layout = self.shapes.sums if rows and vector else self.shapes.column
        if not rows:
            layout = self.shapes.vector if vector else self.shapes.vector.collapse(1)
        bounds = [(0, "clamp", place.total)] if rows and self.shapes.rows > 1 else []
        return self.b.load(self.state.buffers[op.tensor], indices, dims, layout, bounds)

    def along(self, op: s.Source | s.Sink, here: dict[str, Value]) -> tuple[list[Value], list[int]]:
        """Where the tile starts in memory and which of its dimensions runs along which."""
        if len(self.state.info.rows) > 1:
            raise UnsupportedError("packed products of several row axes: flatten them", op.loc)
        indices, runs = self.state.source_index(op, here)
        weight = self.state.info.grid[0].name
        where = {weight: 1, **{a.name: 0 for a in self.state.info.rows}}
        return indices, [where.get(run, -1) for run in runs]
