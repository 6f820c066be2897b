"""Counters of segments: how many tokens each expert got, and where each choice stands."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_routing_stream import (
    StreamPrefixSum,
    StreamSegmentCount,
    StreamSegmentRank,
)
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis
from tilewright.passes.to_tile.routing.selection import put
from tilewright.passes.to_tile.routing.values import Stored, Values


class Counters:
    """One for each segment, and one on either side for ids outside, so that none needs a branch."""

    def __init__(self, values: Values, segments: int, offsets: Value | None) -> None:
        """Counters from 0, or from ``offsets`` (outside -1, where they stay)."""
        self.values, self.b, self.segments = values, values.b, segments
        b = self.b
        room = segments + 2 * values.lanes + 2  # whole vectors on either side
        self.memory = b.scratch([room], I32, "counters")
        outside = b.filled(0 if offsets is None else -1, I32, values.across)
        for at in (0, segments + 1):
            b.store(outside, self.memory, [b.index(at)], (1,))
        axis = Axis("segment", Size.of(segments)) if offsets is None else values.element(offsets)[0]
        with values.vectors((axis,), {}) as here:
            start = b.filled(0, I32, values.across)
            if offsets is not None:
                start = values.spread(b(m.Cast, values.at(offsets, here), dtype=I32, hint="start"))
            first = b.add(here[axis.name], 1)
            bounds = [(1, b.index(segments + 1))] if segments % values.lanes else []
            b.store(start, self.memory, [first], (1,), bounds)

    def count(self, values: Values, ids: Value) -> None:
        """Counts the ids of a block of tokens."""
        b, where = self.b, values.stored.get(ids) or values.keep(ids)
        with b.loop(b.index(0), self._tokens(values), 1, hint="lane") as lane:
            column = b.add(values.column(where), lane.counter)
            with b.loop(b.index(0), b.index(self._places(where)), 1, hint="j") as loop:
                at = self._counter(b(t.Read, where.memory, loop.counter, column, hint="id"))
                put(b, b.add(b(t.Read, self.memory, at, hint="count"), 1), self.memory, [at])

    def rank(self, values: Values, op: StreamSegmentRank) -> None:
        """Where the ids of a block of tokens stand: each takes the next place of its segment."""
        b, out = self.b, values.new(op.result)
        where = values.stored.get(op.ids) or values.keep(op.ids)
        if [a.name for a in where.axes] != [a.name for a in out.axes]:
            raise UnsupportedError("ranks of ids with other axes", op.loc)
        with b.loop(b.index(0), b.index(self._places(where)), 1, hint="j") as loop:
            none = b.filled(-1, I32, values.across)
            b.store(none, out.memory, [loop.counter, values.column(out)], (0, 1))
        with b.loop(b.index(0), self._tokens(values), 1, hint="lane") as lane:
            column = b.add(values.column(where), lane.counter)
            with b.loop(b.index(0), b.index(self._places(where)), 1, hint="j") as loop:
                expert = b(t.Read, where.memory, loop.counter, column, hint="id")
                at = self._counter(expert)
                place = b(t.Read, self.memory, at, hint="place")
                inside = b.mul(
                    b(t.Less, b.index(-1), expert), b(t.Less, expert, b.index(self.segments))
                )
                put(b, b.add(place, inside), self.memory, [at])
                put(b, place, out.memory, [loop.counter, b.add(values.column(out), lane.counter)])
        values.stored[op.result] = out

    def counts(self, values: Values, op: StreamSegmentCount) -> Stored:
        """The counts as a value's scratch."""
        b = self.b
        memory = b.scratch([self.segments + values.lanes, 1], I32, "counts")
        where = Stored(memory, (op.segments,), tokens=False)
        with values.vectors(where.axes, {}) as here:
            at = [b.add(here[op.segments.name], 1)]
            values.write(where, here, b.load(self.memory, at, (1,), values.across, hint="count"))
        return where

    def _counter(self, expert: Value) -> Value:
        b = self.b
        return b.add(b.minimum(b.maximum(expert, -1), self.segments), 1)

    def _tokens(self, values: Values) -> Value:
        block = values.token_block
        return self.b.minimum(self.b.sub(block.limit, block.first), values.lanes)

    def _places(self, where: Stored) -> int:
        return self.values.count(where.axes)


def prefix_sum(values: Values, op: StreamPrefixSum) -> None:
    """Running sums along axes of the element."""
    b, element = values.b, values.element(op.x)
    axes = [next((a for a in element if a.name == n), None) for n in op.axes]
    known = [a for a in axes if a is not None]
    if len(known) != len(axes):
        raise UnsupportedError("running sums along a loop", op.loc)
    where = values.new(op.result)
    rest = tuple(a for a in element if a not in known)
    dtype = values.state.dtype(op.x)
    zero = b.filled(0, dtype, values.across) if where.tokens else b.number(0, dtype)
    with (
        values.places(rest, {}) as at,
        b.loop(b.index(0), b.index(values.count(known)), 1, [zero], hint="i") as loop,
    ):
        here = {**at, **values.state.split_position(loop.counter, tuple(known))}
        total = b(m.Add, loop.carried[0], values.at(op.x, here), hint="sum")
        values.write(where, here, loop.carried[0] if op.exclusive else total)
        loop.next = (total,)
    values.stored[op.result] = where
