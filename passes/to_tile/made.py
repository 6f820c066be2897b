"""A block of a product that the rows share, made in scratch once for all rows of a work item.

Keys and values that follow from a layer's input never lie in memory: a block of the input (unpacked
from its codes, or read in place) is multiplied by the weights right before rows meet the result.
Partial sums over ``sum_chunk`` input channels stay short, and a chunk's weights stay in the nearest
cache while all positions of the block pass by.
"""

from __future__ import annotations

from typing import Protocol

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_remake import RemakeStream
from tilewright.ir.types import Axis
from tilewright.passes.to_tile.kernel_info import KernelInfo, strip_casts
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.state import LoweringState, round_up

UNROLL = 4  # input channels of one turn of the inner loop


class Given(Protocol):
    """The input of a product: a block of it, and tiles of that (see ``InnerOperand``)."""

    def begin_block(self, first: Value, count: Value, limit: Value) -> None: ...

    def load(
        self,
        at: Value,
        element: Value,
        layout: Layout,
        dims: tuple[int, int],
        limit: Value | None,
    ) -> Value: ...


def remakes(graph: Graph) -> list[RemakeStream]:
    return [op for op in graph.body.ops if isinstance(op, RemakeStream)]


def remakes_below(info: KernelInfo, value: Value) -> list[RemakeStream]:
    """The products made again that ``value`` is computed from."""
    op = info.made.get(value)
    if isinstance(op, RemakeStream):
        return [op]
    found: dict[RemakeStream, None] = {}
    for operand in op.operands if op is not None else ():
        found.update(dict.fromkeys(remakes_below(info, operand)))
    return list(found)


def sides(info: KernelInfo, op: RemakeStream) -> tuple[Value, Value]:
    """(input, weights) of a product: what changes along the inner axis, and what does not. Raises
    UnsupportedError if rows differ in one of them, or another axis than the input's is summed."""
    for given, weights in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        below, _ = strip_casts(info, weights)
        parted = info.varies(given) and not info.varies(below)
        shared = not info.on_rows(given) and not info.on_rows(below)
        single = len(info.element(given)) == 1 and len(info.element(op.result)) == 1
        if parted and shared and single and isinstance(info.made.get(below), s.Source):
            return given, below
    raise UnsupportedError("a product made again that is not input times weights", op.loc)


def made_positions(schedule: Schedule) -> int:
    """Positions of a register tile of products: so many of the input are read at a time."""
    return 8 if schedule.lanes == 16 else 4


class MadeBlock:
    """Scratch [position, element] for one product; ``rolled`` ones are there twice, side by side,
    so that a roll is read as one stretch."""

    def __init__(self, state: LoweringState, op: RemakeStream, given: Given) -> None:
        self.state, self.b, self.y, self.op = state, state.build, state.schedule, op
        self.given = given
        info = state.info
        source, weights = sides(info, op)
        self.inner: Axis = info.element(source)[0]
        self.axis: Axis = info.element(op.result)[0]
        found = info.made[weights]
        assert isinstance(found, s.Source)
        self.weights = found
        ops = info.graph.body.ops
        self.twice = any(isinstance(x, s.Roll) and x.x is op.result for x in ops)
        shape = [self.y.inner_block, self.padded + (self.length if self.twice else 0)]
        shape[1] = round_up(shape[1], self.y.lanes)
        self.memory = self.b.scratch(shape, F32, f"{op.result.hint}_made")
        self.first: Value | None = None

    @property
    def length(self) -> int:
        return self.axis.size.constant or 0

    @property
    def padded(self) -> int:
        return round_up(self.length, self.y.lanes)

    def begin_block(self, first: Value, count: Value, limit: Value) -> None:
        """Makes the block; positions at or past ``limit`` are finite."""
        if self.first is first:
            return
        self.first = first
        self.given.begin_block(first, count, limit)
        b, tall = self.b, self._tile()[0]
        whole = b.mul(b.div(b.add(count, tall - 1), tall), tall)
        self._clear(whole)
        length, chunk = self.inner.size.constant or 0, self.y.sum_chunk
        even = length // chunk * chunk
        if even:
            with b.loop(b.index(0), b.index(even), chunk, hint="chunk") as loop:
                self._chunk(loop.counter, chunk, whole, limit)
        if length % chunk:
            self._chunk(b.index(even), length % chunk, whole, limit)
        if self.twice:
            self._double(whole)

    def point(self, at: dict[str, Value], layout: Layout, shift: int = 0) -> Value:
        """A vector of the element at one position, of the result rolled by ``shift``."""
        assert self.first is not None
        b = self.b
        offset = b.sub(at[self.state.info.inner.name], self.first)
        where = b.add(at[self.axis.name], (-shift) % self.length)
        along = 1 if self.y.lanes > 1 else -1
        return b.load(self.memory, [offset, where], [-1, along], layout, hint=self.op.result.hint)

    def load(
        self, at: Value, element: Value, layout: Layout, dims: tuple[int, int], hint: str
    ) -> Value:
        """A tile: positions along tile dimension ``dims[0]``, elements along ``dims[1]``."""
        assert self.first is not None
        offset = self.b.sub(at, self.first)
        return self.b.load(self.memory, [offset, element], dims, layout, hint=hint)

    def _tile(self) -> tuple[int, int]:
        """Positions and vectors of the sums that registers hold."""
        wide = 1 if self.y.lanes == 1 else min(2, self.padded // self.y.lanes)
        return made_positions(self.y), wide

    def _clear(self, whole: Value) -> None:
        b, lanes = self.b, self.y.lanes
        zero = b.filled(0.0, F32, self.state.lane_layout())
        with (
            b.loop(b.index(0), whole, 1, hint="position") as position,
            b.loop(b.index(0), b.index(self.padded), lanes, hint=self.axis.name) as e,
        ):
            b.store(zero, self.memory, [position.counter, e.counter], self._row_dims())

    def _row_dims(self) -> list[int]:
        return [-1, 1] if self.y.lanes > 1 else [-1, -1]

    def _chunk(self, start: Value, length: int, whole: Value, limit: Value) -> None:
        """Adds the products of some input channels, for all positions and elements."""
        b, (tall, wide) = self.b, self._tile()
        step = wide * self.y.lanes
        even = self.padded // step * step
        parts = [(b.index(0), b.index(even), wide)]
        if even < self.padded:
            rest = (self.padded - even) // self.y.lanes
            parts.append((b.index(even), b.index(self.padded), rest))
        for low, high, vectors in parts:
            with (
                b.loop(low, high, vectors * self.y.lanes, hint=self.axis.name) as e,
                b.loop(b.index(0), whole, tall, hint="position") as position,
            ):
                self._sum(start, length, position.counter, e.counter, (tall, vectors), limit)

    def _sum(
        self,
        start: Value,
        length: int,
        offset: Value,
        e: Value,
        tile: tuple[int, int],
        limit: Value,
    ) -> None:
        b, lanes, (tall, wide) = self.b, self.y.lanes, tile
        layout = Layout(2).local(tall, wide).spatial(1, lanes)
        x_layout = Layout(3).local(tall, 1, 1).replicate(lanes)
        assert self.first is not None
        at = b.add(self.first, offset)

        def step(total: Value, c: Value) -> Value:
            x = self.given.load(at, c, x_layout, (0, 2), limit)
            return b(t.Dot, total, x, self._weights(c, e, wide), hint=self.op.result.hint)

        total = b.filled(0.0, F32, layout)
        even = length // UNROLL * UNROLL
        if even:
            end = b.add(start, even)
            with b.loop(start, end, UNROLL, [total], hint=self.inner.name) as loop:
                part = loop.carried[0]
                for number in range(UNROLL):
                    part = step(part, b.add(loop.counter, number))
                loop.next = (part,)
            total = loop.results[0]
        for number in range(even, length):
            total = step(total, b.add(start, number))
        where = [offset, e]
        dims = [0, 1]
        old = b.load(self.memory, where, dims, layout, hint=self.op.result.hint)
        b.store(b(m.Add, old, total, hint="total"), self.memory, where, dims)

    def _weights(self, c: Value, e: Value, wide: int) -> Value:
        """[1, vectors of elements, 1] for one input channel."""
        b, source, lanes = self.b, self.weights, self.y.lanes
        here = {**self.state.grid_at, self.inner.name: c, self.axis.name: e}
        indices, runs = self.state.source_index(source, here)
        dims = [1 if run == self.axis.name else -1 for run in runs]
        layout = Layout(3).local(1, wide, 1).spatial(1, lanes, 1)
        bounds = []
        if self.length % (wide * lanes):
            end = b.index(self.length)
            bounds = [(1, "zero", self.state.limit(source, indices, here, self.axis.name, end))]
        buffer = self.state.buffers[source.tensor]
        x = b.load(buffer, indices, dims, layout, bounds, hint=source.result.hint)
        return x if self.state.dtype(source.result) == F32 else b(m.Cast, x, dtype=F32, hint="w")

    def _double(self, whole: Value) -> None:
        """The elements once more behind the last one; the padding comes first, is overwritten."""
        b, lanes = self.b, self.y.lanes
        with (
            b.loop(b.index(0), whole, 1, hint="position") as position,
            b.loop(b.index(0), b.index(self.length), lanes, hint=self.axis.name) as e,
        ):
            dims, layout = self._row_dims(), self.state.lane_layout()
            x = b.load(self.memory, [position.counter, e.counter], dims, layout)
            where = [position.counter, b.add(e.counter, self.length)]
            b.store(x, self.memory, where, dims)
