"""The tile program of a kernel that routes tokens.

Every level is a loop over blocks of tokens, a token on a lane. What runs once comes after the loop
whose counters it reads. Where tokens are counted or ranked one worker walks them all, unless the
counts are of parts of the loop; else every block is a work item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_routing_stream import (
    StreamPrefixSum,
    StreamSegmentCount,
    StreamSegmentRank,
    StreamTakeAlong,
    StreamTopK,
)
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.routing.choice import choose_largest
from tilewright.passes.to_tile.routing.info import LOOPLESS, TERM, TOKEN, RoutingInfo, routing_info
from tilewright.passes.to_tile.routing.products import product
from tilewright.passes.to_tile.routing.segments import Counters, prefix_sum
from tilewright.passes.to_tile.routing.values import Block, Values
from tilewright.passes.to_tile.schedule import row_schedule
from tilewright.passes.to_tile.state import LoweringState

_FREE = (s.Source, s.Index, s.Repeat, m.Const, m.SizeValue)  # computed wherever they are needed


def routing_program(graph: Graph, target: Target, rows: int, units: dict[str, int]) -> Graph:
    """The tile program for up to ``rows`` tokens (0: any number; with several levels ``FEW``).

    Raises UnsupportedError for kernels that this form does not cover.
    """
    return _Program(graph, target, rows, units).run()


class _Program:
    def __init__(self, graph: Graph, target: Target, rows: int, units: dict[str, int]) -> None:
        self.info: RoutingInfo = routing_info(graph)
        self.target, self.rows = target, rows
        given = kernel_parameters(graph, units)
        self.params, self.sinks = given.values, given.sinks
        self.state = LoweringState(analyse(graph), row_schedule(target), given.buffers)
        self.b = self.state.build
        self.values = Values(self.state, self.info)
        self.counters: dict[Op, Counters] = {}

    def run(self) -> Graph:
        blocks = len(self.info.levels) == 1 and not self.info.counts
        for ops in self.info.levels:
            self._level(ops, blocks)
        grid: tuple[tuple[Size, int], ...] = ((Size.of(self.info.parts), 1),)
        if blocks and self.info.token is not None:
            grid = ((self.info.token.size, self.target.lanes),)
        attrs = {"grid": grid, "outputs": len(self.sinks), "target": self.target.name}
        body = Region(self.params, tuple(self.b.top.ops))
        graph = self.info.graph
        return Graph("tile", graph.name, graph.sizes, body, attrs)

    # ---- loops over tokens

    def _level(self, ops: Sequence[Op], blocks: bool) -> None:
        """A loop over the tokens for what runs in it, then what runs once."""
        for op in ops:
            if isinstance(op, StreamSegmentCount | StreamSegmentRank):
                self.counters[op] = self._counters(op)
        tokens = [op for op in ops if self._in_loop(op)]
        for value in (v for op in tokens if not isinstance(op, s.Sink) for v in op.results):
            if self._reserved(value):
                self.values.reserve(value)
        if any(not isinstance(op, _FREE) for op in tokens):
            self._walk(tokens, blocks)
        for op in ops:
            if isinstance(op, StreamSegmentCount) or not self._in_loop(op):
                self._once(op)

    def _reserved(self, value: Value) -> bool:
        """Whether a value waits in scratch for a later loop over the tokens."""
        made, depth = self.info.made[value], self.info.depth(value)
        return depth == TOKEN and self.info.crosses(value) and not isinstance(made, _FREE)

    def _in_loop(self, op: Op) -> bool:
        walks = s.Sink | StreamSegmentCount
        runs = op.operands[0] if isinstance(op, walks) else op.results[0]
        return self.info.depth(runs) > LOOPLESS

    def _walk(self, ops: Sequence[Op], blocks: bool) -> None:
        b, lanes, token = self.b, self.target.lanes, self.info.token
        if token is None:  # there is one
            self._block(ops, Block(b.index(0), b.index(1)))
            return
        total = b.size(token.size)
        if blocks:
            first = b.mul(b(t.BlockId, dim=0, hint="block"), lanes)
            self._block(ops, Block(first, total))
            return
        start, end = b.index(0), total
        if self.info.parts > 1:
            each = b.div(b.add(total, self.info.parts - 1), self.info.parts)
            start = b.mul(b(t.BlockId, dim=0, hint="part"), each)
            end = b.minimum(b.add(start, each), total)
        with b.loop(start, end, lanes, hint="first") as loop:
            self._block(ops, Block(loop.counter, end))

    def _block(self, ops: Sequence[Op], block: Block) -> None:
        values = self.values
        before = dict(values.tiles), dict(values.stored)
        values.block = block
        crossing = {}
        for op in ops:
            self._token(op)
            for value in op.results:
                if value in values.wide:
                    crossing[value] = values.stored[value]
        values.tiles, values.stored = before
        values.stored.update(crossing)
        values.block = None

    def _token(self, op: Op) -> None:
        """One operation for a block of tokens."""
        values = self.values
        if isinstance(op, s.Sink):
            self._sink(op)
        elif isinstance(op, StreamTopK):
            choose_largest(values, op)
        elif isinstance(op, StreamSegmentCount):
            self.counters[op].count(values, op.ids)
        elif isinstance(op, StreamSegmentRank):
            self.counters[op].rank(values, op)
        elif isinstance(op, StreamPrefixSum):
            prefix_sum(values, op)
        elif isinstance(op, s.Reduce | s.Contract):
            product(values, op, self.rows)
        elif isinstance(op, s.Fold):
            self._fold(op)
        elif self.info.depth(op.results[0]) < TERM and not isinstance(op, m.Const | m.SizeValue):
            self._pointwise(op)

    def _pointwise(self, op: Op) -> None:
        """A number of every token goes to registers, numbers with places to scratch if that saves
        work; what memory has already is read where it is needed."""
        values, value = self.values, op.results[0]
        if not values.element(value) and not isinstance(op, s.Repeat):
            values.tiles[value] = values.at(value, {})
        if self._kept(value):
            values.keep(value)

    def _kept(self, value: Value) -> bool:
        uses = self.info.uses.get(value, [])
        scratch = (StreamSegmentCount, StreamSegmentRank)
        taken = any(isinstance(op, StreamTakeAlong) and op.x is value for op in uses)
        counted = any(isinstance(op, scratch) and op.operands[0] is value for op in uses)
        if taken or counted or value in self.values.wide:
            return True
        if all(isinstance(op, s.Contract) for op in uses):
            return False  # read as the product needs it
        several = len(uses) > 1 or isinstance(self.info.made[value], s.Source)
        return bool(self.values.element(value)) and several and self.values.heavy(value)

    # ---- what is done once

    def _once(self, op: Op) -> None:
        values = self.values
        if isinstance(op, s.Sink):
            self._sink(op)
        elif isinstance(op, StreamSegmentCount):
            values.stored[op.result] = self.counters[op].counts(values, op)
        elif isinstance(op, StreamPrefixSum):
            prefix_sum(values, op)
        elif isinstance(op, s.Fold):
            self._fold(op)
        elif not isinstance(op, _FREE):
            values.keep(op.results[0])

    def _counters(self, op: StreamSegmentCount | StreamSegmentRank) -> Counters:
        if isinstance(op, StreamSegmentCount):
            return Counters(self.values, self.values.size(op.segments), None)
        return Counters(self.values, self.values.count(self.values.element(op.offsets)), op.offsets)

    # ---- folds and results

    def _fold(self, op: s.Fold) -> None:
        """A number that an axis of the element leaves."""
        values, b = self.values, self.b
        axis = next(a for a in values.element(op.x) if a.name == op.axis)
        where = values.new(op.result)
        classes = {"sum": m.Add, "max": m.Max, "min": m.Min}
        places = values.places if where.tokens else values.vectors
        if not where.tokens and values.element(op.x)[-1] == axis:
            places = values.places  # along the axis itself, one after the other
        with places(where.axes, {}) as at:
            first = self._term(op, {**at, axis.name: b.index(0)})
            if where.tokens or values.along:
                first = values.spread(first)
            with b.loop(b.index(1), b.index(values.size(axis)), 1, [first], hint="i") as loop:
                x = self._term(op, {**at, axis.name: loop.counter})
                loop.next = (b(classes[op.kind], loop.carried[0], x, hint=op.kind),)
            found, dtype = loop.results[0], self.state.dtype(op.result)
            if dtype in (BF16, F16):
                found = b(m.Cast, found, dtype=dtype, hint=op.kind)
            if not where.axes and where.tokens:
                values.tiles[op.result] = found
            if where.axes or not where.tokens or where.wide:
                values.write(where, at, found)
                values.stored[op.result] = where

    def _term(self, op: s.Fold, at: Mapping[str, Value]) -> Value:
        """What a fold adds, in f32 if it is a 16-bit float."""
        term = self.values.at(op.x, at)
        narrow = self.state.dtype(op.x) in (BF16, F16)
        return self.b(m.Cast, term, dtype=F32, hint=term.hint) if narrow else term

    def _sink(self, op: s.Sink) -> None:
        """A result, for a block of tokens or once."""
        if self.info.depth(op.x) == LOOPLESS:
            self._sink_once(op)
            return
        values, token, block = self.values, self.info.token, self.values.token_block
        with values.places(values.element(op.x), {}) as at:
            here = at if token is None else {**at, token.name: block.first}
            indices, _ = self.state.source_index(op, dict(here))
            dims, limits = [-1] * len(indices), list[tuple[int, Value]]()
            if token is not None:
                dims = [1 if token.name in names else -1 for names in op.dims]
                limits = [(1, self.state.limit(op, indices, dict(here), token.name, block.limit))]
            tile = values.spread(values.at(op.x, at))
            self.b.store(tile, self.state.buffers[op.result], indices, dims, limits)

    def _sink_once(self, op: s.Sink) -> None:
        values, b = self.values, self.b
        axes, first = values.element(op.x), dict[str, Value]()
        if self.info.parts > 1:  # this part's own counts
            if not isinstance(self.info.made[op.x], StreamSegmentCount):
                raise UnsupportedError(f"%{op.x.hint} needs the counts of all parts", op.loc)
            first, axes = {"part": b(t.BlockId, dim=0, hint="part")}, values.stored[op.x].axes
        with values.vectors(axes, first) as at:
            indices, runs = self.state.source_index(op, dict(at))
            dims = [1 if run == values.along and run else -1 for run in runs]
            tile, limits = values.at(op.x, at), list[tuple[int, Value]]()
            if axes:
                bounds = values.cut(axes[-1], indices[dims.index(1)])
                tile, limits = values.spread(tile), [(d, limit) for d, _, limit in bounds]
            b.store(tile, self.state.buffers[op.result], indices, dims, limits)
