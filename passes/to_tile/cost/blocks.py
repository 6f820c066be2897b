"""Instructions of a kernel that walks the inner axis in blocks, rows on lanes, in closed form.

For all schedules at once: fields of the schedule are arrays. Structure comes from the objects that
lower the kernel (block.py), lengths from the sizes of a call; walk.py is what it is held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, BOOL, F32
from tilewright.ir.target import Target
from tilewright.passes.to_tile.block import BlockLowering
from tilewright.passes.to_tile.cost.counts import NOTHING, Counts, Number, Section
from tilewright.passes.to_tile.cost.expressions import (
    Phase,
    PhaseReader,
    RowValues,
    element_expression,
)
from tilewright.passes.to_tile.cost.machine import LATENCY, far_rows, outer_step
from tilewright.passes.to_tile.cost.operations import (
    combining,
    conversion,
    narrowing,
    pointwise,
    transposition,
)
from tilewright.passes.to_tile.cost.spans import Spans, Stretch
from tilewright.passes.to_tile.kernel_info import KernelInfo, strip_casts
from tilewright.passes.to_tile.parameters import kernel_parameters
from tilewright.passes.to_tile.rows import RowLowering
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.turned_rows import can_write_turned

Fields = Mapping[str, np.ndarray]  # field of the schedule -> its value in every schedule


@dataclass(frozen=True)
class Shapes:
    """Fields of all schedules: ``vectors`` of rows, positions of a ``tile``, of a ``block``, …"""

    vectors: Number
    tile: Number
    block: Number
    unroll: Number
    element_tile: Number
    pointwise_tile: int
    sum_chunk: int
    lanes: int

    @staticmethod
    def of(fields: Fields, y: Schedule) -> Shapes:
        def field(name: str) -> Number:
            return np.asarray(fields.get(name, getattr(y, name)), float)

        return Shapes(
            field("rows") / y.lanes,
            field("inner_tile"),
            field("inner_block"),
            field("unroll"),
            field("element_tile"),
            y.pointwise_tile,
            y.sum_chunk,
            y.lanes,
        )


class BlockModel:
    """The work of one kernel, read once; ``sections`` prices nothing."""

    def __init__(
        self, info: KernelInfo, schedule: Schedule, units: dict[str, int], target: Target
    ) -> None:
        given = kernel_parameters(info.graph, units)
        self.state = LoweringState(info, schedule, given.buffers)
        self.rows = RowLowering(self.state)
        self.low = BlockLowering(self.state, self.rows)
        self.info, self.schedule, self.target = info, schedule, target
        self.sinks = [x for x in given.sinks if not info.per_position(x)]
        self.values = RowValues(self.low, target)
        self.whole, self.cut = (
            [self._phase(n, on) for n in range(self.low.phases)] for on in (False, True)
        )
        for op in self.low.weights:
            if op.rescale:
                self.values.add(op.rescale[0])

    def _phase(self, number: int, masked: bool) -> Phase:
        return PhaseReader(self.low, self.values, self.target, masked).read(number)

    def sections(self, fields: Fields, sizes: Mapping[str, int]) -> tuple[list[Section], Number]:
        """What an average work item does, and how many there are."""
        shapes = Shapes.of(fields, self.schedule)
        self.prefetch = np.asarray(fields.get("prefetch", self.schedule.prefetch))
        spans = Spans(self.info, self.low.mask, sizes, shapes.vectors * shapes.lanes, shapes.lanes)
        shapes = self._shapes(shapes)
        cut = spans.cut(shapes, self.low._grouped())
        found = self._prologue(shapes)
        for stretch, phases in ((spans.whole(shapes), self.whole), (cut, self.cut)):
            found += self._stretch(shapes, stretch, phases)
        return [*found, *self._epilogue(shapes, spans)], spans.items

    def _by_row(self, counts: Counts) -> Counts:
        """What is done with a register of numbers of rows."""
        return counts

    def _shapes(self, y: Shapes) -> Shapes:
        return y

    # ---- once per work item

    def _prologue(self, y: Shapes) -> list[Section]:
        found = []
        for value in self.rows._row_operands():
            length = self.info.element(value)[0].size.constant or 0
            given = element_expression(self.low, value, self.target)
            if self.rows._uses_pairs(value):
                turns = y.vectors * y.lanes * -(-length // (2 * y.lanes))
                each = Counts(load=1, lane=y.lanes, shuffle=y.lanes)
                found.append(Section("pack", each, turns))
                continue
            if self.state.dtype(value) != F32:
                given = given + conversion(self.state.dtype(value), F32, self.target)
            each = given * y.lanes + transposition(y.lanes) + Counts(store=y.lanes)
            found.append(Section("pack", each, y.vectors * -(-length // y.lanes)))
        scalars = len(self.rows._row_scalars())
        if scalars:
            each = Counts(broadcast=scalars, store=scalars)
            found.append(Section("row", each, y.vectors * y.lanes))
        for op in self.info.graph.body.ops:
            if isinstance(op, s.Reduce | s.Scan):
                element = self.info.element(op.results[0])
                length = (element[0].size.constant or 0) if element else 1
                found.append(Section("state", Counts(store=1) * y.vectors, length))
        return found

    def _epilogue(self, y: Shapes, spans: Spans) -> list[Section]:
        found = []
        for sink in self.sinks:
            element = self.info.element(sink.x)
            length = (element[0].size.constant or 0) if element else 1
            if can_write_turned(self.state, sink):
                below, _ = strip_casts(self.info, sink.x)
                sums = _from_state(self.low, below, self.target)
                each = sums * y.lanes + transposition(y.lanes)
                turns = spans.groups * -(-length // y.lanes)
                found.append(Section("turn", each, turns))
                one = Counts(store=1)
                if self.state.dtype(sink.x) != F32:
                    one = one + conversion(F32, self.state.dtype(sink.x), self.target)
                found.append(Section("write", one, spans.rows * -(-length // y.lanes)))
            elif element:
                each = Counts(lane=y.lanes, shuffle=y.lanes, alu=1, store=1)
                found.append(Section("write", each, spans.rows * -(-length // y.lanes)))
            else:
                found.append(Section("write", Counts(broadcast=2, store=1), spans.rows))
        return found

    # ---- blocks

    def _stretch(self, y: Shapes, at: Stretch, phases: list[Phase]) -> list[Section]:
        found = self._shared(y, at)
        for phase in phases:
            found += self._tiles(y, at, phase)
        loads = self._by_row(Counts(load=self.values.loads) + self.values.each)
        found.append(Section("rows", loads * at.vectors, at.passes))
        for op, (_, vector) in self.low.weights.items():
            found += self._sum(y, at, op, vector)
        for sink in self.low.sinks:
            found += self._written(y, at, sink)
        return found

    def _shared(self, y: Shapes, at: Stretch) -> list[Section]:
        """What is brought into the form that products read."""
        found = []
        for value, operand in self.state.shared.items():
            if operand.converted is None:
                continue
            vectors = -(-(operand.axis.size.constant or 0) // y.lanes)
            each = element_expression(self.low, value, self.target) + Counts(store=1)
            if self.state.dtype(value) != F32:
                each = each + conversion(self.state.dtype(value), F32, self.target)
            found.append(Section("convert", each, at.tiled(y.tile) * vectors))
        blocks = [x.turned_block for x in self.state.shared.values() if x.turned_block is not None]
        for block in (*blocks, *self.low.contraction.turned_blocks.values()):
            each = Counts(load=1, store=1) + conversion(BF16, F32, self.target)
            if block.pairs:
                each = Counts(load=2, shuffle=1, store=1)
            steps = -(-block.length // (1 + block.pairs))
            found.append(Section("turn keys", each, at.tiled(y.tile) / y.lanes * steps))
        for vector in self.low.outer.pair_vectors:
            vectors = -(-(self.info.element(vector)[0].size.constant or 0) // y.lanes)
            each = Counts(load=2, shuffle=1, store=1)
            pairs = np.ceil(at.begun / 2)
            found.append(Section("weave", each, pairs * vectors, entries=3 * pairs))
        for value in self.low.turned.kept:
            kind = self.state.dtype(value)
            one = (
                Counts(load=1)
                if kind == F32
                else Counts(load=1, alu=1)
                if kind == BOOL
                else (Counts(load=1) + conversion(kind, F32, self.target))
            )
            each = one * y.lanes + transposition(y.lanes) + Counts(store=y.lanes)
            found.append(Section("turn", each, y.vectors * np.ceil(at.begun / y.lanes)))
        return found

    def _tiles(self, y: Shapes, at: Stretch, phase: Phase) -> list[Section]:
        """The loop over register tiles of a phase, and what settles its statistics."""
        if not (phase.kept or phase.statistics):
            return []
        step = y.tile if phase.forms_product else y.pointwise_tile
        turns, many = at.tiles(step), step * at.vectors
        found = [section for op in phase.products for section in self._product(y, at, op, turns)]
        each = phase.full * many + Counts(scalar=phase.scalar, broadcast=phase.broadcasts) * step
        for value in phase.kept:
            each = each + self._keeping(value) * many
        settled = NOTHING
        trees: set[tuple[Value, str]] = set()
        for op in phase.statistics:
            one = combining(op.kind, self.state.dtype(op.results[0]).is_float)
            if (op.x, op.kind) not in trees:  # positions as a tree, then with those before
                each = each + one * (many - at.vectors) + Counts(alu=1) * (many * at.masked)
            trees.add((op.x, op.kind))
            each = each + one * at.vectors
            settled = settled + one + Counts(load=1, store=1)
            if isinstance(op, s.Reduce) and op.rescale:
                settled = settled + Counts(fma=1)
        if at.masked and phase.statistics:
            each = each + Counts(scalar=2.0) * step
        chain = LATENCY if phase.statistics else 0.0
        kept = 4.0 * len(self.low.scratch) * y.block * at.vectors * y.lanes
        found.append(Section("tile", each, turns, chain, kept, at.passes))
        if phase.statistics:
            found.append(Section("settle", settled * at.vectors, at.passes))
        return found

    def _keeping(self, value: Value) -> Counts:
        scratch = self.low.scratch
        found = Counts(store=1) if ("numbers", value) in scratch else NOTHING
        if ("pairs", value) in scratch:
            found = found + Counts(shuffle=0.5, store=0.5) + narrowing(self.target)
        return found

    def _product(self, y: Shapes, at: Stretch, op: s.Contract, turns: Number) -> list[Section]:
        """Outer products along an element's axis."""
        row, _ = self.rows.row_side(op)
        length = self.info.element(row)[0].size.constant or 0
        pairs = self.rows.pairs_for(op)
        length = length // 2 if pairs else length
        step = outer_step(at.vectors, y.tile, self.target, pairs)
        reach = 4.0 * y.vectors * y.lanes * length  # what rows bring, read again for every tile
        step = replace(step, name="product", reach=reach, apart=step.apart + far_rows(y.tile))
        found = _unrolled(step, turns, length, y.unroll)
        many = y.tile * at.vectors
        if length > y.sum_chunk + y.sum_chunk // 2:
            chunks = -(-length // y.sum_chunk)
            found.append(Section("total", Counts(add=1) * many, turns * chunks))
        return found

    def _sum(self, y: Shapes, at: Stretch, op: s.Reduce, vector: Value) -> list[Section]:
        """Outer products along a block's positions, a tile of elements at a time."""
        pairs = vector in self.low.outer.pair_vectors
        length = self.info.element(vector)[0].size.constant or 0
        rest = Counts(load=1, store=1) + (Counts(fma=1) if op.rescale else Counts(add=1))
        block = 4.0 * y.block * y.vectors * y.lanes / (2 if pairs else 1)
        found = []
        tile = np.minimum(y.element_tile, length)
        whole, left = length // tile, length % tile
        for size, tiles in ((tile, whole), (left, (left > 0) * 1.0)):
            if not np.any(tiles):
                continue
            steps, extra = at.steps(y.unroll, 2 if pairs else 1)
            step = replace(
                outer_step(at.vectors, size, self.target, pairs), name="sum", reach=block
            )
            several = replace(_several(step, y.unroll), entries=at.passes * tiles)
            found += [replace(several, turns=steps * tiles), replace(step, turns=extra * tiles)]
            state = rest * (size * at.vectors)
            found.append(Section("join", state, at.passes * tiles))
        return found

    def _written(self, y: Shapes, at: Stretch, sink: s.Sink) -> list[Section]:
        """A block of a result with a number for every position, turned."""
        each = Counts(load=y.lanes, store=y.lanes) + transposition(y.lanes)
        return [Section("write", each, y.vectors * np.ceil(at.begun / y.lanes))]


def _several(step: Section, unroll: Number) -> Section:
    """Some steps as one turn."""
    return replace(
        step,
        counts=step.counts * unroll,
        chain=step.chain * unroll,
        spills=step.spills * unroll,
        apart=step.apart * unroll,
    )


def _unrolled(step: Section, turns: Number, length: int, unroll: Number) -> list[Section]:
    """``length`` steps, ``unroll`` at a time, the rest one by one."""
    fits = length >= unroll
    whole = np.where(fits, length // unroll, 0)
    extra = np.where(fits, length % unroll, length)
    several = replace(_several(step, unroll), turns=turns * whole, entries=turns)
    return [several, replace(step, turns=turns * extra)]


def _from_state(low: BlockLowering, value: Value, target: Target) -> Counts:
    """Per register of a result made from sums along the inner axis."""
    op = low.info.made.get(value)
    if isinstance(op, s.Reduce):
        return Counts(load=1) if low.info.element(value) else NOTHING
    if op is None or not low.info.element(value):
        return NOTHING
    found = pointwise(op, F32, target)
    for operand in op.operands:
        found = found + _from_state(low, operand, target)
    return found
