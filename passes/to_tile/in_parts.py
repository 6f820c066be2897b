"""A kernel of few rows as two: work items share out the inner axis, then their parts are joined.

One row of queries over many keys, or a few rows of a loss over a vocabulary, make fewer work items
than there are threads. So an item takes a part of the positions and leaves what it carries from
block to block, running extremes and sums, in memory

    part_x [parts, position on every outer loop, element]           for every scan and every sum

The second kernel streams over the parts. It is derived: the same scans run over the parts'
extremes, and a part's sum is rescaled from its own extreme m_p as the kernel rescales from one
block to the next, where ``rescale`` is a function f of the extremes before and now:

    l = sum_p f(m_p, m) l_p     (state = state * f(before, m) + f(m_p, m) * l_p while p runs)

How many parts there are is a size like others: no number of them compiles anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Builder, Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, BufferType, StreamType, TensorType
from tilewright.passes.rewrite import sizes_in
from tilewright.passes.to_tile.kernel_info import KernelInfo, is_row_kernel
from tilewright.passes.to_tile.state import LoweringState

PARTS = "parts"  # the name of their number, unless a size is called so

Statistic = s.Scan | s.Reduce


def statistics_of(info: KernelInfo) -> list[Statistic]:
    """What is carried from block to block."""
    return [op for op in info.graph.body.ops if isinstance(op, s.Scan | s.Reduce)]


def can_be_shared_out(info: KernelInfo) -> bool:
    """True if parts of the inner axis can be put together: running extremes, sums and extremes,
    and no result that comes once per position."""
    if is_row_kernel(info.graph) or info.splits or not info.inner.name:
        return False
    sinks = (op for op in info.graph.body.ops if isinstance(op, s.Sink))
    scans = (op for op in statistics_of(info) if isinstance(op, s.Scan))
    return not any(info.per_position(op) for op in sinks) and all(op.kind != "sum" for op in scans)


def parts_name(graph: Graph) -> str:
    """What the number of a kernel's parts is called."""
    name = PARTS
    while name in graph.sizes:
        name += "_"
    return name


def outer_loops(info: KernelInfo, op: Statistic) -> tuple[Axis, ...]:
    """The loops around the inner one that a statistic runs in."""
    type_ = op.x.type
    assert isinstance(type_, StreamType)
    return type_.loops[:-1]


def partial_types(info: KernelInfo) -> list[TensorType]:
    """What all parts leave of each statistic."""
    count, found = Size.of(parts_name(info.graph)), []
    for op in statistics_of(info):
        type_ = op.results[0].type
        assert isinstance(type_, StreamType)
        axes = (*outer_loops(info, op), *type_.element)
        found.append(TensorType((count, *(a.size for a in axes)), type_.dtype))
    return found


def partial_names(info: KernelInfo) -> list[str]:
    """Names of them that no input has."""
    stem, taken = "part", {p.hint for p in info.graph.params}
    while any(name.startswith(stem) for name in taken):
        stem += "_"
    return [f"{stem}{at}" for at in range(len(statistics_of(info)))]


@dataclass
class Partials:
    """The memory that the first kernel leaves its statistics in, one buffer for each."""

    info: KernelInfo
    buffers: tuple[Value, ...]

    @classmethod
    def of(cls, info: KernelInfo) -> Partials:
        """Those of a kernel."""
        found = []
        for type_, name in zip(partial_types(info), partial_names(info), strict=True):
            found.append(Value(BufferType(type_.shape, type_.dtype, len(type_.shape) - 1), name))
        return cls(info, tuple(found))

    @property
    def count(self) -> Size:
        return Size.of(parts_name(self.info.graph))

    def store(self, state: LoweringState, row: Value, at: dict[str, Value]) -> None:
        """Writes what a work item has of one row."""
        for op, buffer in zip(statistics_of(self.info), self.buffers, strict=True):
            assert state.part is not None
            lead = [state.part, *(at[a.name] for a in outer_loops(self.info, op))]
            scratch, element = state.sums[op.results[0]], self.info.element(op.results[0])
            if element:
                _store_lanes(state, scratch, buffer, lead, row, element[0])
                continue
            tile = state.build.load(scratch, [state.build.index(0), row], [-1, -1], Layout(2))
            state.build.store(tile, buffer, lead, [-1] * len(lead))


def _store_lanes(
    state: LoweringState, scratch: Value, buffer: Value, lead: list[Value], row: Value, axis: Axis
) -> None:
    """Writes a row's vector, which lies turned where rows lie on lanes."""
    b, y, length = state.build, state.schedule, axis.size.constant or 0
    bounds = [(1, b.index(length))] if length % y.lanes else []
    with b.loop(b.index(0), b.index(length), y.lanes, hint=axis.name) as loop:
        here = loop.counter
        place, dims = ([here, row], [1, -1]) if y.rows_on_lanes else ([row, here], [-1, 1])
        within = [(d, "zero", end) for d, end in bounds] if y.rows_on_lanes else []
        tile = b.load(scratch, place, dims, state.lane_layout(), within)
        along = [*[-1] * len(lead), 1]
        b.store(tile, buffer, [*lead, here], along if y.lanes > 1 else [-1] * len(along), bounds)


def merging_graph(info: KernelInfo) -> Graph:
    """The second kernel: a stream graph over the parts, which takes all partial results and then
    those of the kernel's inputs that it needs. Raises UnsupportedError if sums are rescaled by
    more than running extremes."""
    return _Merging(info).run()


@dataclass
class _Merging:
    info: KernelInfo
    build: Builder = field(default_factory=Builder)
    given: dict[Value, Value] = field(default_factory=dict)  # what is known of the old values
    before: dict[Value, Value] = field(default_factory=dict)  # those as of a part's own extremes
    read: dict[Value, None] = field(default_factory=dict)  # inputs of the kernel

    def run(self) -> Graph:
        graph, stats = self.info.graph, statistics_of(self.info)
        names = {a.name for x in self._streams() for a in x.axes}
        name = PARTS
        while name in names:
            name += "_"
        count = parts_name(graph)
        self.axis = Axis(name, Size.of(count))
        known = zip(partial_types(self.info), partial_names(self.info), strict=True)
        partials = [Value(type_, name) for type_, name in known]
        sources = {op: self._source(op, x) for op, x in zip(stats, partials, strict=True)}
        for op in stats:
            if isinstance(op, s.Scan):
                self._scan(op, sources[op])
        for op in stats:
            if isinstance(op, s.Reduce):
                self.given[op.result] = self._reduce(op, sources[op])
        sinks = (op for op in graph.body.ops if isinstance(op, s.Sink))
        made = {op.result: self._cloned(op, self.given).results[0] for op in sinks}
        params = (*partials, *self._inputs(partials))
        sizes = tuple(n for n in (*graph.sizes, count) if n in _told(list(params)))
        body = Region(params, tuple(self.build.ops), tuple(made[v] for v in graph.results))
        return Graph("stream", f"{graph.name}_merge", sizes, body)

    def _inputs(self, partials: list[Value]) -> list[Value]:
        """The kernel's inputs that are read, and those that tell a size."""
        found = list(self.read)
        wanted = sizes_in(self.build.ops) - _told([*partials, *found])
        for param in self.info.graph.params:
            if param not in found and wanted & _told([param]):
                found.append(param)
                wanted -= _told([param])
        return found

    def _streams(self) -> list[StreamType]:
        types = [v.type for op in self.info.graph.body.ops for v in op.results]
        return [x for x in types if isinstance(x, StreamType)]

    def _source(self, op: Statistic, partial: Value) -> Value:
        loops, element = outer_loops(self.info, op), self.info.element(op.results[0])
        old = op.results[0].type
        assert isinstance(old, StreamType)
        type_ = StreamType((*loops, self.axis), element, old.dtype)
        dims = ((self.axis.name,), *((a.name,) for a in (*loops, *element)))
        return self.build(s.Source, partial, dims=dims, type=type_, hint=op.results[0].hint)

    def _scan(self, op: s.Scan, extremes: Value) -> None:
        """The running extreme over the parts in the place of that over positions."""
        attrs = {**op.attrs, "axis": self.axis.name}
        made = self.build.add(s.Scan(extremes, hints=[r.hint for r in op.results], **attrs))
        self.given.update(zip(op.results, made.results, strict=True))
        self.before.update({op.results[0]: made.results[0], op.results[1]: extremes})

    def _reduce(self, op: s.Reduce, x: Value) -> Value:
        attrs = {**op.attrs, "axis": self.axis.name}
        if not op.rescale:
            return self.build(s.Reduce, x, hint=op.result.hint, **attrs)
        factor = self._value(op.rescale[0], self.before)
        x = self.build(m.Mul, x, factor, hint=f"{op.result.hint}_scaled")
        now = self._value(op.rescale[0], self.given)
        return self.build(s.Reduce, x, now, hint=op.result.hint, **attrs)

    def _value(self, value: Value, given: dict[Value, Value]) -> Value:
        """An old value computed from what is known of others."""
        if value in given:
            return given[value]
        op = self.info.made.get(value)
        if op is None:
            self.read.setdefault(value)
            return value
        self._cloned(op, given)
        return given[value]

    def _cloned(self, op: Op, given: dict[Value, Value]) -> Op:
        if isinstance(op, s.Source | s.Index | s.Gather) and self.info.varies(op.results[0]):
            raise UnsupportedError("a sum rescaled by what comes with positions", op.loc)
        operands = [self._value(v, given) for v in op.operands]
        attrs: dict[str, Any] = dict(op.attrs)
        if isinstance(op, s.Repeat) and op.axis.name == self.info.inner.name:
            attrs["axis"] = self.axis
        hints = [r.hint for r in op.results]
        made = self.build.add(type(op)(*operands, loc=op.loc, hints=hints, **attrs))
        given.update(zip(op.results, made.results, strict=True))
        return made


def _told(inputs: list[Value]) -> set[str]:
    """The sizes that are dimensions of inputs."""
    types = (v.type for v in inputs)
    shapes = [size for x in types if isinstance(x, TensorType) for size in x.shape]
    return {n for size in shapes for n in size.names if size == Size.of(n)}
