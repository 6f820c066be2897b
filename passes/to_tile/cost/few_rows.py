"""Instructions of a kernel with a few rows in registers, in closed form (decoding).

A register tile is one register: the positions of all rows lie on its lanes. The axis of an element
lies on lanes, too, so that products are read as they lie in memory and summed across lanes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.passes.to_tile.cost.blocks import BlockModel, Shapes
from tilewright.passes.to_tile.cost.counts import NOTHING, Counts, Section
from tilewright.passes.to_tile.cost.expressions import Phase, element_expression
from tilewright.passes.to_tile.cost.machine import LATENCY
from tilewright.passes.to_tile.cost.operations import butterfly, combining, conversion
from tilewright.passes.to_tile.cost.spans import Spans, Stretch
from tilewright.passes.to_tile.kernel_info import strip_casts

LINE = 512  # bits


class FewRowsModel(BlockModel):
    """The work of one kernel, read once."""

    @property
    def count(self) -> int:
        """Rows of a work item."""
        return self.schedule.rows

    def _vector(self, value: Value, rows_too: bool = False) -> Counts:
        """Reading one register of an element, in f32."""
        found = element_expression(self.low, value, self.target)
        kind = self.state.dtype(value)
        return found if kind == F32 else found + conversion(kind, F32, self.target)

    def _shapes(self, y: Shapes) -> Shapes:
        """One register of rows, whatever their number."""
        return replace(y, vectors=np.ones_like(y.vectors))

    def _by_row(self, counts: Counts) -> Counts:
        """What is done with one number per row: of a single row it is done once for all lanes."""
        if self.count > 1:
            return counts
        return Counts(broadcast=counts.load, scalar=counts.vector - counts.load)

    def _registers(self, value: Value) -> int:
        """Of an element."""
        return -(-(self.info.element(value)[0].size.constant or 0) // self.schedule.lanes)

    def _lines(self, vector: Value, width: int) -> float:
        """Lines of memory asked for ahead of so many registers of an element."""
        below, _ = strip_casts(self.info, vector)
        bits = width * self.schedule.lanes * self.state.dtype(below).bits
        return float(-(-bits // LINE))

    def _prologue(self, y: Shapes) -> list[Section]:
        found = []
        for value in self.rows._row_operands():
            each = element_expression(self.low, value, self.target) + Counts(store=1)
            found.append(Section("pack", each, float(self.count * self._registers(value))))
        scalars = len(self.rows._row_scalars())
        if scalars:
            found.append(Section("row", Counts(broadcast=scalars, store=scalars), self.count))
        for op in self.info.graph.body.ops:
            if isinstance(op, s.Reduce | s.Scan):
                wide = bool(self.info.element(op.results[0]))
                many = self.count * self._registers(op.results[0]) if wide else 1
                found.append(Section("state", Counts(store=1), float(many)))
        return found

    def _epilogue(self, y: Shapes, spans: Spans) -> list[Section]:
        found = []
        for sink in self.sinks:
            if not self.info.element(sink.x):
                found.append(Section("write", Counts(broadcast=2, store=1), spans.rows))
                continue
            each = element_expression(self.low, sink.x, self.target) + Counts(store=1)
            found.append(Section("write", each, spans.rows * self._registers(sink.x)))
        return found

    def _tiles(self, y: Shapes, at: Stretch, phase: Phase) -> list[Section]:
        if not (phase.kept or phase.statistics):
            return []
        positions = self.schedule.inner_tile
        turns = at.tiles(np.asarray(float(positions)))
        each = phase.full + Counts(alu=phase.scalar, load=phase.broadcasts)
        for value in phase.kept:
            each = each + self._keeping(value)
        settled = NOTHING
        exchanged = float(int(positions).bit_length() - 1)
        trees: set[tuple[Value, str]] = set()
        for op in phase.statistics:
            one = combining(op.kind, self.state.dtype(op.results[0]).is_float)
            masks = float(at.masked and (op.x, op.kind) not in trees)
            trees.add((op.x, op.kind))
            each = each + one + Counts(alu=masks)
            settled = settled + (one + Counts(shuffle=1)) * exchanged
            old = one + Counts(load=1)
            if isinstance(op, s.Reduce) and op.rescale:
                old = old + Counts(fma=1)
            settled = settled + self._by_row(old) + Counts(store=1)
        found = [self._across(y, at, op, turns) for op in phase.products]
        chain = LATENCY if phase.statistics else 0.0
        found.append(Section("tile", each, turns, chain))
        if phase.statistics:
            found.append(Section("settle", settled, at.passes))
        return found

    def _across(self, y: Shapes, at: Stretch, op: s.Contract, turns: object) -> Section:
        """A register tile of sums across lanes: every position is read from end to end."""
        row, inner = self.rows.row_side(op)
        steps = float(self.schedule.inner_tile * self._registers(row))
        each = self._vector(inner) + Counts(fma=1, load=1) * float(self.count)
        some = np.asarray(self.prefetch > 0, float) * (not at.masked)
        each = each + Counts(prefetch=1.0) * some
        return Section("product", each * steps + butterfly(y.lanes), turns)

    def _sum(self, y: Shapes, at: Stretch, op: s.Reduce, vector: Value) -> list[Section]:
        vectors, most = self._registers(vector), self.schedule.element_tile
        width = min(vectors, most)
        height = max(1, most // width)
        found = [Section("turned", Counts(store=1), at.passes)] if op.rescale else []
        some = np.asarray(self.prefetch > 0, float) * (not at.masked)
        for row in range(0, self.count, height):
            for start in range(0, vectors, width):
                h, w = min(height, self.count - row), min(width, vectors - start)
                each = self._vector(vector) * float(w) + Counts(broadcast=h, fma=h * w)
                each = each + Counts(prefetch=self._lines(vector, w)) * (some * (row == 0))
                steps, extra = at.steps(y.unroll, 1)
                found.append(
                    Section("sum", each * y.unroll, steps, LATENCY * y.unroll, entries=at.passes)
                )
                found.append(Section("sum", each, extra, LATENCY))
                join = Counts(load=h * w, store=h * w)
                join = join + (Counts(fma=h * w, broadcast=h) if op.rescale else Counts(add=h * w))
                found.append(Section("join", join, at.passes))
        return found
