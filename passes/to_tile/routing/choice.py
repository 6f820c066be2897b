"""The k largest of every token's numbers: a sorted list in registers, into which each is put.

Numbers are compared as integer keys of the same order, in which NaN is largest and zeros are
equal. k + 1 are kept where torch's order of equal numbers is asked for: it matters just if two
neighbours among them are equal, and for tokens with such (``tied``) the choice is made again, in
torch's steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F16, F32, I32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_routing_stream import StreamTopK, without
from tilewright.ir.types import Axis
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.routing.selection import TileSelection, put
from tilewright.passes.to_tile.routing.values import Stored, Values

MOST = 32  # numbers kept in registers, or near them
_SIGN = 0x7FFFFFFF
_NAN = _SIGN - 1  # above infinity, and turned over still above NONE
NONE = -(1 << 31)  # what no number has


def choose_largest(values: Values, op: StreamTopK) -> None:
    """Values and positions, in scratch."""
    _Choice(values, op).run()


def key_of(b: TileBuilder, x: Value, dtype: DType, largest: bool) -> Value:
    """i32 that are ordered as the numbers: the first of a choice has the largest."""
    wide = x if dtype == F32 else b(m.Cast, x, dtype=F32)
    bits = b(View, wide, dtype=I32, layout=wide.type.layout)  # type: ignore[union-attr]
    key = _flipped(b, bits)
    negative_zero = b(m.Compare, key, _number(b, -1, key), relation="eq")
    key = b(m.Select, negative_zero, _number(b, 0, key), key, hint="key")
    nan = b(m.Compare, wide, wide, relation="ne", hint="nan")
    key = b(m.Select, nan, _number(b, _NAN, key), key, hint="key")
    return key if largest else b(m.BitXor, key, _number(b, -1, key), hint="key")


def from_key(b: TileBuilder, key: Value, dtype: DType, largest: bool) -> Value:
    """The number of a key (-0 as 0)."""
    key = key if largest else b(m.BitXor, key, _number(b, -1, key), hint="key")
    bits = _flipped(b, key)
    wide = b(View, bits, dtype=F32, layout=bits.type.layout)  # type: ignore[union-attr]
    return wide if dtype == F32 else b(m.Cast, wide, dtype=dtype, hint="value")


def _flipped(b: TileBuilder, bits: Value) -> Value:
    """Negative numbers have larger bits the smaller they are: all but the sign turned over."""
    sign = b(m.ShiftRightSigned, bits, _number(b, 31, bits))
    return b(m.BitXor, bits, b(m.BitAnd, sign, _number(b, _SIGN, bits)), hint="key")


def _number(b: TileBuilder, number: int, beside: Value) -> Value:
    """An i32 for tiles of as many dimensions as another has."""
    return b.number(number, I32, beside.type.layout.rank)  # type: ignore[union-attr]


class _Choice:
    def __init__(self, values: Values, op: StreamTopK) -> None:
        self.values, self.op, self.b = values, op, values.b
        element = values.element(op.x)
        self.axes: list[Axis] = [a for n in op.axes for a in element if a.name == n]
        self.rest = without(element, op.axes)
        self.count, self.k = values.count(self.axes), values.count([op.kept])
        if len(op.axes) != len(self.axes) or not self.axes:
            raise UnsupportedError("a choice along a loop", op.loc)
        self.dtype = values.state.dtype(op.x)
        if self.dtype not in (F32, BF16, F16):
            raise UnsupportedError(f"the largest of {self.dtype}", op.loc)
        if self.k > MOST:
            raise UnsupportedError(f"the {self.k} largest; up to {MOST} have kernels", op.loc)
        uses = values.info.uses
        self.wanted = [bool(uses.get(r)) for r in op.results]
        # equal numbers are equal values: their order shows in the positions only
        self.again = op.ties == "torch" and self.wanted[1]
        self.kept = min(self.k + 1, self.count) if self.again else self.k

    def run(self) -> None:
        values, op = self.values, self.op
        found, ids = (values.new(r) for r in op.results)
        lanes = values.lanes
        shape = [max(1, values.count(self.rest)) * self.count, lanes]
        keys = self.b.scratch(shape, I32, "keys") if self.again else None
        chosen = self.b.scratch([self.k, lanes], I32, "best")
        with values.places(self.rest, {}) as at:
            self._insert(at, keys, chosen, ids)
            if self.wanted[0]:
                self._decode(at, chosen, found)
        for result, where in zip(op.results, (found, ids), strict=True):
            values.stored[result] = where

    def _insert(
        self, at: Mapping[str, Value], keys: Value | None, chosen: Value, ids: Stored
    ) -> None:
        """Every number in turn; the best keys to ``chosen``, their positions to ``ids``."""
        b, values, kept = self.b, self.values, self.kept
        least = b.filled(NONE, I32, values.across)
        none = b.filled(0, I32, values.across)
        start = [least] * kept + [none] * kept
        base = b.mul(values.flat(self.rest, at), self.count)
        zero, count = b.index(0), b.index(self.count)
        with b.loop(zero, count, 1, start, hint="candidate") as loop:
            here = values.state.split_position(loop.counter, tuple(self.axes))
            x = values.spread(values.at(self.op.x, {**at, **here}))
            key = key_of(b, x, self.dtype, self.op.largest)
            if keys is not None:
                b.store(key, keys, [b.add(base, loop.counter), zero], (0, 1))
            place = values.spread(values.state.build.number_of(loop.counter, I32))
            loop.next = tuple(_put_in(b, list(loop.carried), key, place, kept))
        best, places = loop.results[:kept], loop.results[kept:]
        for j in range(self.k):
            b.store(best[j], chosen, [b.index(j), zero], (0, 1))
            values.write(ids, {**at, self.op.kept.name: b.index(j)}, places[j])
        if keys is not None:
            self._tied(at, best, (keys, base), (chosen, ids))

    def _tied(
        self,
        at: Mapping[str, Value],
        best: Sequence[Value],
        keys: tuple[Value, Value],
        found: tuple[Value, Stored],
    ) -> None:
        """Tokens whose order the keys do not say are chosen for again, one after the other."""
        b, values, zero = self.b, self.values, self.b.index(0)
        flags = b.scratch([1, values.lanes], I32, "tied")
        equal = b.filled(int(not self.op.ordered), I32, values.across)
        for one, other in pairwise(best):
            same = b(m.Compare, one, other, relation="eq")
            equal = b(m.Select, same, b.number(1, I32), equal, hint="tied")
        b.store(equal, flags, [zero, zero], (0, 1))
        some = b.scratch([1, 1], I32, "some")
        b.store(b(t.Reduce, equal, kind="max", dim=1), some, [zero, zero], (0, 1))
        with b.when_less(zero, b(t.Read, some, zero, zero, hint="some")):
            block = values.token_block
            count = b.minimum(b.sub(block.limit, block.first), values.lanes)
            with (
                b.loop(zero, count, 1, hint="lane") as loop,
                b.when_less(zero, b(t.Read, flags, zero, loop.counter, hint="tied")),
            ):
                self._choose_again(at, loop.counter, keys, found)

    def _choose_again(
        self,
        at: Mapping[str, Value],
        lane: Value,
        keys: tuple[Value, Value],
        found: tuple[Value, Stored],
    ) -> None:
        b, (memory, base), (chosen, ids) = self.b, keys, found

        def key(place: Value) -> Value:
            return b(t.Read, memory, b.add(base, place), lane, hint="key")

        selection = TileSelection(b, self.count, self.k, self.op.ordered, key)
        selection.run()
        with b.loop(b.index(0), b.index(self.k), 1, hint="j") as loop:
            place = selection.get(loop.counter)
            put(b, key(place), chosen, [loop.counter, lane])
            row = self.values.flat(ids.axes, {**at, self.op.kept.name: loop.counter})
            put(b, place, ids.memory, [row, b.add(self.values.column(ids), lane)])

    def _decode(self, at: Mapping[str, Value], chosen: Value, found: Stored) -> None:
        """Values of the keys that were chosen."""
        b, values = self.b, self.values
        for j in range(self.k):
            key = b.load(chosen, [b.index(j), b.index(0)], (0, 1), values.across, hint="best")
            value = from_key(b, key, self.dtype, self.op.largest)
            values.write(found, {**at, self.op.kept.name: b.index(j)}, value)


def _put_in(b: TileBuilder, held: list[Value], key: Value, place: Value, kept: int) -> list[Value]:
    """A sorted list with one more number, without the last: it stands before the first entry that
    it is larger than, and those from there on move down. Of equal ones the earlier stays above."""
    keys, places = held[:kept], held[kept:]
    larger = [b(m.Compare, key, held, relation="gt", hint="larger") for held in keys]
    new_keys, new_places = [], []
    for j in range(kept):
        here = b(m.Max, key, keys[j]) if not j else b(m.Min, key, keys[j - 1])
        new_keys.append(b(m.Max, here, keys[j], hint="best") if j else here)
        at = b(m.Select, larger[j], place, places[j], hint="at")
        new_places.append(b(m.Select, larger[j - 1], places[j - 1], at, hint="at") if j else at)
    return [*new_keys, *new_places]
