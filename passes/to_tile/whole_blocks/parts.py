"""A kernel in two: work items share out the inner axis, then what they found is put together.

Few rows and many positions (a decode step) make too few work items for a GPU. So each item takes
one part of the positions and leaves its running statistics and sums in memory

    partial [parts, position on every grid axis, row, element]      of every scan and every sum

and a second kernel, one work item a row, reads those of all parts, always in the same order:

    m = max_p m_p          l = sum_p f(m_p, m) l_p          acc = sum_p f(m_p, m) acc_p

f is what the kernel itself rescales its sums with from one block to the next. How many parts there
are is a size like others: no number of them compiles anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.ops_stream import IDENTITY
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.in_parts import Statistic, parts_name, statistics_of
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.parameters import Parameters
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.frame import Frame, FrameMemory, Place
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, padded
from tilewright.passes.to_tile.whole_blocks.values import Scope, Values

AT_ONCE = 16  # parts that are read together


@dataclass(frozen=True)
class Partials:
    """The memory between both kernels: a buffer for each statistic, in their order."""

    info: KernelInfo
    count: Size
    buffers: tuple[Value, ...]

    @classmethod
    def of(cls, info: KernelInfo) -> Partials:
        """Those of a kernel with these rows."""
        count, buffers = Size.of(parts_name(info.graph)), []
        for op in statistics_of(info):
            element = tuple(a.size for a in info.element(op.results[0]))
            shape = (count, *(a.size for a in info.grid), info.row_count, *element)
            type_ = BufferType(shape, F32, len(shape) - 1)
            buffers.append(Value(type_, f"part_{op.results[0].hint}"))
        return cls(info, count, tuple(buffers))

    def store(self, values: Values, carried: Sequence[Value]) -> None:
        """Writes what one work item found in its part."""
        b, state = values.build, values.state
        assert state.first_row is not None and state.row_total is not None
        part = b(t.BlockId, dim=len(self.info.grid), hint="part")
        lead = [part, *(state.grid_at[a.name] for a in self.info.grid)]
        for op, tile, buffer in zip(statistics_of(self.info), carried, self.buffers, strict=True):
            element = self.info.element(op.results[0])
            frame = values.row_frame(element[0].name if element else "")
            at, dims = [*lead, state.first_row], [*[-1] * len(lead), 0]
            bounds = [(0, state.row_total)]
            if element:
                at, dims = [*at, b.index(0)], [*dims, 1]
                if element[0].size.constant != frame.sizes[1]:
                    bounds.append((1, b.size(element[0].size)))
            b.store(values.memory.widened(tile, frame.layout), buffer, at, dims, bounds)


class MergeProgram:
    """The second kernel: one row a work item."""

    def __init__(self, partials: Partials, given: Parameters) -> None:
        info = partials.info
        self.partials, self.given = partials, given
        self.info = replace(info, rows=(), grid=(*info.grid, *info.rows))
        self.schedule = BlockSchedule(1, AT_ONCE, 4, 1)
        self.state = LoweringState(self.info, self.schedule.plain(), given.buffers)
        self.build = self.state.build
        self.values = self._begin()
        self.frame = Frame((next(iter(partials.count.names)), ""), (AT_ONCE, 1))

    def _begin(self) -> Values:
        b, state = self.build, self.state
        for dim, axis in enumerate(self.info.grid):
            state.grid_at[axis.name] = b(t.BlockId, dim=dim, hint=f"{axis.name}_at")
        at, limits = dict(state.grid_at), {}
        values = Values(state, FrameMemory(state, frozenset()), set(), Scope(Place(at), False))
        for name, size in values.element_sizes.items():
            at[name] = b.index(0)
            if size.constant != padded(size):
                limits[name] = b.size(size)
        values.scope.place = Place(at, limits)
        values.memory.tiled = frozenset({*values.element_sizes, self.info.inner.name})
        return values

    def run(self, target: str) -> Graph:
        """The program; its inputs are the kernel's, then the partial results."""
        largest = self._largest()
        for op, total in zip(self._reduces, self._totals(largest), strict=True):
            self.values.scope.statistics[op.result] = total
        for sink in self.given.sinks:
            element = self.info.element(sink.x)
            frame = self.values.row_frame(element[0].name if element else "")
            values = self.values
            values.memory.store(sink, values.tile(sink.x, frame), frame, values.scope.place)
        count = len(self.given.sinks)
        inputs = self.given.values[: len(self.given.values) - count]
        params = (*inputs, *self.partials.buffers, *self.given.values[len(inputs) :])
        attrs = {
            "grid": tuple((axis.size, 1) for axis in self.info.grid),
            "outputs": count,
            "target": target,
            "warps": self.schedule.warps,
            "stages": self.schedule.stages,
            "bulk": False,
        }
        graph = self.info.graph
        sizes = (*graph.sizes, *self.partials.count.names)
        body = Region(params, tuple(self.build.top.ops))
        return Graph("tile", f"{graph.name}_merge", sizes, body, attrs)

    @property
    def _reduces(self) -> list[s.Reduce]:
        return [op for op in statistics_of(self.info) if isinstance(op, s.Reduce)]

    @property
    def _scans(self) -> list[s.Scan]:
        return [op for op in statistics_of(self.info) if isinstance(op, s.Scan)]

    # ---- reading

    def _read(self, op: Statistic, first: Value) -> Value:
        """One statistic of some parts, [parts, element]; what leaves a result alone past the
        last."""
        b, (name, _), info = self.build, self.frame.axes, self.info
        buffer = self.partials.buffers[statistics_of(info).index(op)]
        row = b.index(0)
        outer = self.partials.info
        for axis in outer.rows:
            row = b.add(b.mul(row, b.size(axis.size)), self.state.grid_at[axis.name])
        at = [first, *(self.state.grid_at[a.name] for a in outer.grid), row]
        dims, total = [0, *[-1] * (len(at) - 1)], b.size(self.partials.count)
        element = info.element(op.results[0])
        width = self.values.length(element[0].name) if element else 1
        frame = Frame((name, element[0].name if element else ""), (AT_ONCE, width))
        bounds = [(0, "zero", total)]
        if element:
            at, dims = [*at, b.index(0)], [*dims, 1]
            if element[0].size.constant != width:
                bounds.append((1, "zero", b.size(element[0].size)))
        x = b.load(buffer, at, dims, frame.layout, bounds, hint=op.results[0].hint)
        if op.kind == "sum":
            return x
        place = Place({name: first}, {name: total})
        return self.values.memory.masked(x, name, frame, place, IDENTITY[op.kind])

    def _reduced(self, op: Statistic, x: Value, before: Value) -> Value:
        """A running result with that of some parts."""
        hint = op.results[0].hint
        part = self.build(t.Reduce, x, kind=op.kind, dim=0, hint=f"{hint}_{op.kind}")
        return self.state.combine(op.kind, before, part)

    def _start(self, op: Statistic) -> Value:
        element = self.info.element(op.results[0])
        layout = self.values.row_frame(element[0].name if element else "").layout
        return self.build.filled(IDENTITY[op.kind], F32, layout)

    # ---- both walks over the parts

    def _largest(self) -> dict[s.Scan, Value]:
        """The running extremes after all parts."""
        b, scans = self.build, self._scans
        if not scans:
            return {}
        start, total = [self._start(op) for op in scans], b.size(self.partials.count)
        with b.loop(b.index(0), total, AT_ONCE, start, "part") as loop:
            loop.next = tuple(
                self._reduced(op, self._read(op, loop.counter), before)
                for op, before in zip(scans, loop.carried, strict=True)
            )
        return dict(zip(scans, loop.results, strict=True))

    def _totals(self, largest: dict[s.Scan, Value]) -> tuple[Value, ...]:
        """The sums of all parts, each brought to the common extremes."""
        b, reduces = self.build, self._reduces
        start, total = [self._start(op) for op in reduces], b.size(self.partials.count)
        place = self.values.scope.place
        with (
            b.loop(b.index(0), total, AT_ONCE, start, "part") as loop,
            self.values.within(place, False) as scope,
        ):
            for scan, after in largest.items():
                before = self._read(scan, loop.counter)
                scope.statistics |= {scan.results[0]: after, scan.results[1]: before}
            loop.next = tuple(
                self._joined(op, self._read(op, loop.counter), before)
                for op, before in zip(reduces, loop.carried, strict=True)
            )
        return loop.results

    def _joined(self, op: s.Reduce, x: Value, before: Value) -> Value:
        if op.rescale:
            factor = self.values.tile(op.rescale[0], self.frame)
            x = self.build(m.Mul, x, factor, hint=f"{op.result.hint}_scaled")
        return self._reduced(op, x, before)
