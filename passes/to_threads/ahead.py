"""Blocks that loops copy before their turn: which they are, and the copies of one turn."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.to_threads.copied import CopiedBlocks
from tilewright.passes.to_threads.families import Families
from tilewright.passes.to_threads.layouts import ROWS
from tilewright.passes.to_threads.slices import Turns, slice_of
from tilewright.passes.to_threads.staging import Ahead, Counted, Staged, Staging, counted_index
from tilewright.passes.to_tile.emitter import TileBuilder


class CopiesAhead:
    """Part of the lowering to threads (lower.Lowering)."""

    graph: Graph
    build: TileBuilder
    made: dict[Value, Op]
    values: dict[tuple[Value, str], Value]
    families: Families
    feeds: set[Value]
    grouped: set[Value]
    blocks: CopiedBlocks
    staging: Staging

    def at(self, value: Value, family: str = ROWS) -> Value:
        """What stands for a value of the old program."""
        raise NotImplementedError

    def _op(self, op: Op) -> None:
        """Lowers an operation."""
        raise NotImplementedError

    def _copy(self, staged: Staged, slot: Value, coming: Value | None = None) -> None:
        """Begins a block's copy from where its load says; ``coming``: 1, or 0 for nothing."""
        raise NotImplementedError

    @property
    def _slots(self) -> int:
        return max(2, int(self.graph.attrs.get("stages", 2)))

    def _ahead(self, op: t.For) -> Ahead:
        """The loads of a loop that products read and whose place is known ahead."""
        region, found = op.regions[0], Ahead()
        inside = {v: inner for inner in region.ops for v in inner.results}

        def made(value: Value) -> Op | None:
            """What made a value of the loop; constants are known everywhere."""
            everywhere = self.made.get(value)
            return everywhere if isinstance(everywhere, m.Const) else inside.get(value)

        for inner in region.ops:
            if not isinstance(inner, t.Load | t.LoadLines) or inner.result not in self.feeds:
                continue
            families = self.families.get(inner.result, set())
            if len(families) != 1:  # no side of a product
                continue
            if isinstance(inner, t.LoadLines) and self.blocks.family(inner, families) is None:
                continue
            counted = place = None
            if isinstance(inner, t.Load):
                counted = counted_index(inner, region.params[0], made)
            if counted is None:
                place = slice_of(region, inner.operands)
            if counted is None and place is None:
                continue
            staged = self.staging.place(inner, self._slots, inner.result in self.grouped)
            if staged is not None and counted is not None:
                found.staged.append(staged)
                found.counted.append(counted)
            elif staged is not None and place is not None:
                found.sliced.append((staged, place))
        return found

    def _linear(self, counter: Value, counted: Counted) -> Value:
        """The place in memory at a turn of a loop."""
        at = counter if counted.factor == 1 else self.build.mul(counter, counted.factor)
        return at if counted.offset is None else self.build.add(at, self._outside(counted.offset))

    def _outside(self, value: Value) -> Value:
        """What stands for a value that does not change in a loop, before it and in it."""
        op = self.made.get(value)
        return self.build.index(int(op.value)) if isinstance(op, m.Const) else self.at(value)

    def _copy_ahead(self, ahead: Ahead, turns: Turns, at: Value, slot: Value) -> None:
        """Begins the copies of a turn; those of turns that will not come read nothing."""
        b, end = self.build, turns.hi
        for staged, place in ahead.sliced:
            before = dict(self.values)
            coming = b(t.Less, at, end, hint="coming")
            self.values[turns.counter, ROWS] = b.minimum(at, turns.last(b))  # a place that is there
            for op in place:
                self._op(op)
            self._copy(staged, slot, coming)
            self.values = before
        for staged, counted in zip(ahead.staged, ahead.counted, strict=True):
            load = staged.load
            assert isinstance(load, t.Load)
            there, limit = self._linear(at, counted), self._linear(end, counted)
            rest = [
                there if number == counted.index else self._outside(v)
                for number, v in enumerate(load.rest)
            ]
            along = load.dims[counted.index]
            bounded = any(d == along for d, _ in load.bounds)
            self.staging.copy(staged, rest, slot, {} if bounded else {along: limit})
        self.staging.commit()
