"""One kernel as the program of one work item: a block of rows, all blocks of the inner axis.

A work item takes one position of every grid axis and a block of rows along one axis. What rows
bring and the running statistics stay in registers; blocks of what rows share are read in turn.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.passes.to_tile.in_parts import can_be_shared_out
from tilewright.passes.to_tile.kernel_info import KernelInfo, is_row_kernel
from tilewright.passes.to_tile.lowbit.info import has_packed_weights
from tilewright.passes.to_tile.mask_range import MaskRange, find_mask_range
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.block import BlockBuilder
from tilewright.passes.to_tile.whole_blocks.frame import FrameMemory, Place
from tilewright.passes.to_tile.whole_blocks.parts import MergeProgram, Partials
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, padded
from tilewright.passes.to_tile.whole_blocks.spans import Spans
from tilewright.passes.to_tile.whole_blocks.values import Scope, Values
from tilewright.passes.to_tile.whole_blocks.walk import BlockLoops


def lower_whole_blocks(
    info: KernelInfo,
    schedule: BlockSchedule,
    units: dict[str, int],
    target: Target,
    few: bool = False,
) -> Graph:
    """The tile program of a kernel; ``few``: a work item takes rows of all axes that share what is
    read. Raises UnsupportedError for forms that it does not cover."""
    return _Program(_rows_chosen(info, few), schedule, units).run(target)


def lower_in_parts(
    info: KernelInfo,
    schedule: BlockSchedule,
    units: dict[str, int],
    target: Target,
    few: bool = False,
) -> tuple[Graph, Graph] | None:
    """The same as two programs (parts.py): the first takes memory for partial results after its
    inputs, the second reads it. None where parts cannot be put together."""
    info = _rows_chosen(info, few)
    if not can_be_shared_out(info):
        return None
    partials = Partials.of(info)
    merge = MergeProgram(partials, kernel_parameters(info.graph, units))
    return _Program(info, schedule, units, partials).run(target), merge.run(target.name)


def lower_with_spans(
    info: KernelInfo, schedule: BlockSchedule, units: dict[str, int], target: Target
) -> tuple[Graph, Graph] | None:
    """The same as two programs (spans.py): the first leaves where work items walk in memory after
    its inputs, which the second reads. None where every work item finds that for itself."""
    info = _rows_chosen(info, False)
    spans = None if is_row_kernel(info.graph) else Spans.of(info, find_mask_range(info))
    if spans is None:
        return None
    first = _Program(info, schedule, units, spans=spans).find_spans(target)
    return first, _Program(info, schedule, units, spans=spans).run(target)


def _rows_chosen(info: KernelInfo, few: bool) -> KernelInfo:
    """The kernel with the rows of a work item: of one axis unless there are few."""
    if has_packed_weights(info.graph):
        raise UnsupportedError(f"{info.graph.name}: low-bit weights on a GPU")
    if few or len(info.rows) < 2:
        return info
    return replace(info, rows=info.rows[-1:], grid=(*info.grid, *info.rows[:-1]))


class _Program:
    def __init__(
        self,
        info: KernelInfo,
        schedule: BlockSchedule,
        units: dict[str, int],
        partials: Partials | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.info, self.schedule, self.partials, self.spans = info, schedule, partials, spans
        given = kernel_parameters(info.graph, units)
        self.params, self.sinks = given.values, given.sinks
        self.inputs = given.values[: len(given.values) - len(given.sinks)]
        if partials is not None:
            self.params = (*self.inputs, *partials.buffers)
        elif spans is not None:
            self.params = (*self.inputs, spans.buffer, *given.values[len(self.inputs) :])
        self.state = LoweringState(info, schedule.plain(), given.buffers)
        self.build = self.state.build

    def run(self, target: Target) -> Graph:
        """The program with its grid: the blocks of rows are the last dimension."""
        info, parts = self.info, self.partials
        row_kernel = is_row_kernel(info.graph)
        mask = MaskRange() if row_kernel else find_mask_range(info)
        values = self._begin(mask)
        if not row_kernel:
            self._blocks(values, mask)
        for sink in self.sinks if parts is None else ():
            if not info.per_position(sink) or row_kernel:
                self._write(values, sink)
        grid = [(axis.size, 1) for axis in info.grid]
        if parts is not None:
            grid.append((parts.count, 1))
        if info.splits:
            grid.append((info.inner.size, self.state.schedule.inner_part))
        grid.append((info.row_count, self._row_block))
        attrs = {
            "grid": tuple(grid),
            "outputs": len(self.sinks) if parts is None else 0,
            "target": target.name,
            "warps": self.schedule.warps,
            "stages": self.schedule.stages,
            "bulk": self.schedule.bulk,
        }
        if self.schedule.warps == 1:
            attrs["at_once"] = self.schedule.at_once
        if parts is not None:
            attrs["shares"] = (info.inner.size, self.schedule.inner, self.schedule.at_once)
        body = Region(self.params, tuple(self.build.top.ops))
        more = parts.count.names if parts is not None else ()
        more = self.spans.blocks.names if self.spans is not None else more
        return Graph("tile", info.graph.name, (*info.graph.sizes, *more), body, attrs)

    def find_spans(self, target: Target) -> Graph:
        """The program that leaves every block of rows' span in memory."""
        info, spans = self.info, self.spans
        assert spans is not None
        mask = find_mask_range(info)
        values = self._begin(mask)
        spans.write(self.state, self._row_block, BlockLoops(values, mask).span())
        attrs = {
            "grid": spans.grid(self._row_block),
            "outputs": 0,
            "target": target.name,
            "warps": 4,
            "stages": 1,
            "bulk": False,
        }
        body = Region((*self.inputs, spans.buffer), tuple(self.build.top.ops))
        sizes = (*info.graph.sizes, *spans.blocks.names)
        return Graph("tile", f"{info.graph.name}_spans", sizes, body, attrs)

    @property
    def _row_block(self) -> int:
        return self.schedule.rows if self.info.rows else 1

    def _begin(self, mask: MaskRange) -> Values:
        """Where the work item is, what its rows bring."""
        b, info, state = self.build, self.info, self.state
        for dim, axis in enumerate(info.grid):
            state.grid_at[axis.name] = b(t.BlockId, dim=dim, hint=f"{axis.name}_at")
        dim = len(info.grid) + (info.splits or self.partials is not None)
        block = b(t.BlockId, dim=dim, hint="row_block")
        if any(bound.upper and _grows(bound.terms, info) for bound in mask.bounds):
            blocks = b.div(b.add(b.size(info.row_count), self._row_block - 1), self._row_block)
            block = b.sub(b.sub(blocks, 1), block)  # those with the longest way come first
        state.first_row = b.mul(block, self._row_block)
        state.row_total = b.size(info.row_count)
        tiled = {a.name for a in info.rows} | {info.inner.name}
        at, limits = dict(state.grid_at), {}
        if info.rows:
            rows = " ".join(axis.name for axis in info.rows)
            at[rows], limits[rows] = state.first_row, state.row_total
        scope = Scope(Place(at, limits), True)
        values = Values(state, FrameMemory(state, frozenset()), mask.conditions, scope)
        values.one_warp = self.schedule.warps == 1
        for name, size in values.element_sizes.items():
            tiled.add(name)
            at[name] = b.index(0)
            if size.constant != padded(size):
                limits[name] = b.size(size)
        values.memory.tiled = frozenset(tiled)
        values.memory.whole = frozenset(values.element_sizes) - set(limits)
        return values

    def _blocks(self, values: Values, mask: MaskRange) -> None:
        info = self.info
        builder = BlockBuilder(self.state, values)
        for op in info.products:
            values.prepare(op)
        for value in self._row_values():
            values.tile(value, values.score_frame)
        count = self.partials.count if self.partials is not None else None
        known = None if self.spans is None else self.spans.read(self.state, self._row_block)
        loops = BlockLoops(values, mask, count, known)
        carried = loops.run(builder.body, builder.start())
        if self.partials is not None:
            self.partials.store(values, carried)
        else:
            builder.finish(carried, values.scope)

    def _row_values(self) -> list[Value]:
        """Numbers that stay the same along the inner axis, and that blocks read."""
        info = self.info
        out: dict[Value, None] = {}
        late: set[Value] = set()
        for op in info.graph.body.ops:
            if isinstance(op, s.Reduce) or any(v in late for v in op.operands):
                late.update(op.results)
            for result in op.results:
                single = isinstance(op, m.Const | m.SizeValue | s.Repeat | s.Sink | s.Scan)
                early = result not in late and not info.in_block(result)
                if early and not single and not info.element(result):
                    out[result] = None
        return list(out)

    def _write(self, values: Values, sink: s.Sink) -> None:
        element = self.info.element(sink.x)
        if len(element) > 1:
            raise UnsupportedError("a result that is a matrix for every row", sink.loc)
        frame = values.row_frame(element[0].name if element else "")
        values.memory.store(sink, values.tile(sink.x, frame), frame, values.scope.place)


def _grows(terms: tuple[tuple[str, int], ...], info: KernelInfo) -> bool:
    """True if a bound moves up along the rows."""
    return any(name == axis.name and factor > 0 for name, factor in terms for axis in info.rows)
