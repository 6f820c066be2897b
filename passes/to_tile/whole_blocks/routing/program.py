"""The programs of a kernel that routes tokens, on whole blocks.

Tokens of a call are independent until they are counted: a work item takes a block of them. Where
they are counted, or ranked by their experts, each work item takes a part of the tokens, of a number
that does not depend on the call; what came before a part is the sum of what others counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_routing_stream import (
    StreamScatter,
    StreamSegmentCount,
    StreamSegmentRank,
    StreamTakeAlong,
)
from tilewright.ir.ops_tile_memory import Barrier
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType, StreamType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.routing.info import RoutingInfo, routing_info
from tilewright.passes.to_tile.whole_blocks.routing.counters import counted, early, ranked
from tilewright.passes.to_tile.whole_blocks.routing.frame import PART, TokenFrame, element_axes
from tilewright.passes.to_tile.whole_blocks.routing.products import ROWS
from tilewright.passes.to_tile.whole_blocks.routing.values import TokenValues
from tilewright.passes.to_tile.whole_blocks.schedule import power_of_two

PARTS = 256  # of the tokens, about twice as many as a GPU has multiprocessors
ROOM = 512  # numbers of the largest tile for each warp, so that a few of them fit into registers
WARPS = 4
MOST_ROWS, MOST_WARPS = 32, 16
ADDING = 8  # warps of a kernel that adds up what parts of the tokens counted
COUNTED_ROWS = 8  # all choices of a token are written out by compilers


def block_routing_programs(
    graph: Graph, target: Target, units: dict[str, int]
) -> tuple[Graph, ...]:
    """The program of a kernel; two where tokens are ranked: counts i32 [PARTS, segments] of what
    the kernel's inputs are, and one that takes them behind these inputs.

    Raises UnsupportedError for kernels that this form does not cover.
    """
    info = routing_info(graph)
    if len(info.levels) > 1:
        raise UnsupportedError(f"{graph.name}: several loops over the tokens on a GPU")
    ranks = [op for op in graph.body.ops if isinstance(op, StreamSegmentRank)]
    if not ranks:
        return (_Program(info, target, units).run(),)
    if len(ranks) > 1 or any(isinstance(op, StreamSegmentCount) for op in graph.body.ops):
        raise UnsupportedError(f"{graph.name}: counts and ranks in one kernel on a GPU")
    return (
        _Program(info, target, units, ranks[0]).count(),
        _Program(info, target, units, ranks[0]).run(),
    )


class _Program:
    def __init__(
        self,
        info: RoutingInfo,
        target: Target,
        units: dict[str, int],
        rank: StreamSegmentRank | None = None,
    ) -> None:
        self.info, self.target, self.rank = info, target, rank
        graph = self.graph = info.graph
        given = kernel_parameters(graph, units)
        self.sinks, self.buffers = given.sinks, given.buffers
        self.inputs = tuple(given.buffers[v] for v in graph.params)
        self.outputs = tuple(given.buffers[sink.result] for sink in given.sinks)
        self.b = TileBuilder()
        token = info.token.name if info.token is not None else ""
        terms = {op.axis for op in graph.body.ops if isinstance(op, s.Reduce)}
        terms |= {a for op in graph.body.ops if isinstance(op, s.Contract) for a in op.axes}
        axes = element_axes(graph, token, terms)
        if info.parts > 1:
            axes.pop(PART, None)
        self.frame = TokenFrame(self.b, axes, token, self._rows(axes))
        self.warps = ADDING if info.token is None else WARPS
        most = WARPS if target.gpu == "hip" else MOST_WARPS  # more leave a thread few registers
        while info.token is not None and self.warps < most:
            if self.frame.rows * self._widest(axes) <= ROOM * self.warps:
                break
            self.warps *= 2
        self.values = TokenValues(self.b, self.frame, self.buffers, info.made)
        self.counts = [op for op in graph.body.ops if isinstance(op, StreamSegmentCount)]
        if rank is not None:
            segments = Size.of(self.frame.sizes[self._segment(rank)])
            counts = BufferType((Size.of(PARTS), segments), I32, 1)
            self.before = Value(counts, "counts_before")

    def _segment(self, rank: StreamSegmentRank) -> str:
        assert isinstance(rank.offsets.type, StreamType)
        return rank.offsets.type.element[0].name

    def _rows(self, axes: dict[str, int]) -> int:
        """Tokens of a block: the largest tile of a token's numbers fits often enough."""
        if self.info.token is None:
            return 1
        ops = self.graph.body.ops
        if any(isinstance(op, s.Reduce | s.Contract) for op in ops):
            return ROWS
        counts = any(isinstance(op, StreamSegmentCount | StreamSegmentRank) for op in ops)
        most = COUNTED_ROWS if counts else MOST_ROWS
        return max(1, min(most, ROOM * WARPS // self._widest(axes)))

    def _widest(self, axes: dict[str, int]) -> int:
        """The most numbers that are looked at for a token at once."""
        return max((self._width(op, axes) for op in self.graph.body.ops), default=1)

    def _width(self, op: Op, axes: dict[str, int]) -> int:
        """Numbers that an operation looks at for a token at once."""
        together = isinstance(op, StreamTakeAlong | StreamScatter)
        values = (*op.operands, *op.results) if together else op.results
        if isinstance(op, StreamSegmentRank):
            values = (op.offsets,)  # one choice after the other
        names = {
            a.name
            for v in values
            if isinstance(v.type, StreamType)
            for a in v.type.element
            if a.name in axes
        }
        total = 1
        for name in names:
            total *= power_of_two(axes[name])
        return total

    # ---- the program

    def run(self) -> Graph:
        """The kernel's own program."""
        b, info = self.b, self.info
        if info.token is None:
            self._once()
        elif self.counts or self.rank is not None:
            self._walk()
        else:
            self.frame.first = b.mul(b(t.BlockId, dim=0, hint="block"), self.frame.rows)
            self.frame.end = b.size(info.token.size)
            self._tokens()
        grid: tuple[tuple[Size, int], ...] = ((Size.of(self._parts), 1),)
        if info.token is not None and not self.counts and self.rank is None:
            grid = ((info.token.size, self.frame.rows),)
        before = () if self.rank is None else (self.before,)
        return self._graph(self.graph.name, (*self.inputs, *before, *self.outputs), grid)

    @property
    def _parts(self) -> int:
        return PARTS if self.rank is not None else self.info.parts

    def count(self) -> Graph:
        """The program that counts the ids of parts of the tokens."""
        assert self.rank is not None
        b, frame, segment = self.b, self.frame, self._segment(self.rank)
        part, start, end = self._part()
        ids = self.rank.ids
        start_counts = b.filled(0, I32, frame.layout([segment]))

        def step(before: Sequence[Value]) -> list[Value]:
            found = counted(self.values, ids, segment)
            return [b(m.Add, before[0], found, hint="counts")]

        (found,) = self._loop(start, end, [start_counts], step)
        self._store_part(found, self.before, part, segment)
        grid = ((Size.of(PARTS), 1),)
        return self._graph(f"{self.graph.name}_counts", (*self.inputs, self.before), grid, 1)

    def _graph(
        self,
        name: str,
        params: tuple[Value, ...],
        grid: tuple[tuple[Size, int], ...],
        outputs: int | None = None,
    ) -> Graph:
        attrs = {
            "grid": grid,
            "outputs": len(self.outputs) if outputs is None else outputs,
            "target": self.target.name,
            "warps": self.warps,
            "stages": 2,
            "bulk": False,
        }
        body = Region(params, tuple(self.b.top.ops))
        return Graph("tile", name, self.graph.sizes, body, attrs)

    # ---- loops over tokens

    def _part(self) -> tuple[Value, Value, Value]:
        """The part of this work item, where its tokens begin and where they end."""
        b, token, parts = self.b, self.info.token, self._parts
        assert token is not None
        total = b.size(token.size)
        if parts == 1:
            return b.index(0), b.index(0), total
        part = b(t.BlockId, dim=0, hint="part")
        each = b.div(b.add(total, parts - 1), parts)
        start = b.minimum(b.mul(part, each), total)
        return part, start, b.minimum(b.add(start, each), total)

    def _loop(
        self,
        start: Value,
        end: Value,
        carried: Sequence[Value],
        step: Callable[[Sequence[Value]], list[Value]],
    ) -> tuple[Value, ...]:
        """A loop over the blocks of a part, with tiles that live in one turn."""
        frame, values = self.frame, self.values
        with self.b.loop(start, end, frame.rows, carried, hint="first") as loop:
            before = dict(values.tiles)
            frame.first, frame.end = loop.counter, end
            loop.next = tuple(step(loop.carried))
            values.tiles, frame.first, frame.end = before, None, None
        return loop.results

    def _walk(self) -> None:
        """Counts, or ranks, of the tokens of a part, one block after another."""
        b, frame, values = self.b, self.frame, self.values
        part, start, end = self._part()
        segments = [op.segments.name for op in self.counts]
        carried = [b.filled(0, I32, frame.layout([name])) for name in segments]
        rank = self.rank
        if rank is not None:
            segment = self._segment(rank)
            offsets = values.tile(self._offsets(rank))
            carried = [early(values, self.before, part, offsets, segment, PARTS)]

        def step(before: Sequence[Value]) -> list[Value]:
            if rank is not None:
                values.tiles[rank.result], more = ranked(values, rank.ids, before[0], segment)
                self._tokens()
                return [more]
            self._tokens()
            self._read_again([op.ids for op in self.counts])
            return [
                b(m.Add, x, counted(values, op.ids, name), hint="counts")
                for x, op, name in zip(before, self.counts, segments, strict=True)
            ]

        results = self._loop(start, end, carried, step)
        for op, found in zip(self.counts, results, strict=False):
            if op.parts > 1:
                self._sinks_of_part(op, found, part)
            else:
                values.tiles[op.result] = found
        self._once()

    def _read_again(self, ids: Sequence[Value]) -> None:
        """Takes ids that were just written from memory: else compilers make a choice again in the
        layout that counts need, with all of its numbers in every thread."""
        written = [
            sink for sink in self.sinks if sink.x in ids and all(len(d) < 2 for d in sink.dims)
        ]
        if written:
            self.b.effect(Barrier)
        for sink in written:
            self.values.tiles[sink.x] = self.values.load_back(sink)

    def _offsets(self, rank: StreamSegmentRank) -> Value:
        """Where segments begin, known before the loop."""
        value = rank.offsets
        op = self.info.made[value]
        while isinstance(op, s.Repeat):
            value = op.x
            op = self.info.made[value]
        steady = isinstance(op, s.Source) and all(self.frame.token not in d for d in op.dims)
        if _loops(value) and not steady:
            raise UnsupportedError("offsets that change from token to token on a GPU", rank.loc)
        return value

    def _tokens(self) -> None:
        """What a block's tokens give."""
        for sink in self.sinks:
            if _loops(sink.x):
                self.values.store(sink)

    def _once(self) -> None:
        """What there is one of, after all tokens."""
        for sink in self.sinks:
            counts = self.info.made.get(sink.x)
            done = isinstance(counts, StreamSegmentCount) and counts.parts > 1
            if not _loops(sink.x) and not done:
                self.values.store(sink)

    def _sinks_of_part(self, op: StreamSegmentCount, found: Value, part: Value) -> None:
        for sink in self.sinks:
            if sink.x is op.result:
                if sink.dims != ((PART,), (op.segments.name,)):
                    raise UnsupportedError("counts of parts in another order", sink.loc)
                self._store_part(found, self.buffers[sink.result], part, op.segments.name)
            elif not _loops(sink.x) and self.info.made.get(sink.x) not in self.counts:
                raise UnsupportedError("counts of parts that are used at once", sink.loc)

    def _store_part(self, found: Value, memory: Value, part: Value, segment: str) -> None:
        b, frame = self.b, self.frame
        end = b.index(frame.sizes[segment])
        bounds = (
            [(frame.dim(segment), end)] if frame.sizes[segment] != frame.padded(segment) else []
        )
        dims = (-1, frame.dim(segment) if frame.padded(segment) > 1 else -1)
        b.store(found, memory, [part, b.index(0)], dims, bounds)


def _loops(value: Value) -> bool:
    """Whether there is one for every token."""
    return isinstance(value.type, StreamType) and bool(value.type.loops)
