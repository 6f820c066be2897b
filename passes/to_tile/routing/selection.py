"""torch's order of equal numbers in tile programs: libstdc++'s algorithms, one token at a time.

The same steps as in ``tilewright.ir.selection``, on keys in scratch: for tokens whose largest
numbers are not all different, which is where the steps decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.emitter import TileBuilder

MOST_SORTED = 16  # std::sort of more is not by insertion
Key = Callable[[Value], Value]


def put(b: TileBuilder, number: Value, memory: Value, at: Sequence[Value]) -> None:
    """Stores an index as an i32."""
    tile = b(m.Cast, b.splat(number), dtype=I32, hint=number.hint)
    b.store(tile, memory, list(at), (-1,) * len(at))


def choose(b: TileBuilder, condition: Value, yes: Value, no: Value) -> Value:
    """``yes`` if the index ``condition`` is 1, ``no`` if it is 0."""
    return b.add(no, b.mul(condition, b.sub(yes, no)))


class TileSelection:
    """Puts the positions of the ``k`` largest of ``count`` keys into the first places of
    ``places``; ``key(position)`` reads one."""

    def __init__(self, b: TileBuilder, count: int, k: int, ordered: bool, key: Key) -> None:
        """Raises UnsupportedError for a sort that is not by insertion."""
        self.b, self.count, self.k, self.ordered, self.key = b, count, k, ordered, key
        self.partial = k * 64 <= count
        if ordered and not self.partial and k - 1 > MOST_SORTED:
            raise UnsupportedError(f"torch's order of equal numbers for k = {k} of {count}")
        self.places = b.scratch([count], I32, "places")
        self.cell = b.scratch([1], I32, "cell")

    def run(self) -> None:
        b, zero = self.b, self.b.index(0)
        with b.loop(zero, b.index(self.count), 1, hint="i") as loop:
            self.set(loop.counter, loop.counter)
        if self.partial:
            self._heap_select(zero, b.index(self.k), b.index(self.count))
            self._sort_heap(zero, b.index(self.k))
            return
        self._nth_element(self.k - 1)
        if self.ordered:
            self._insertion_sort(zero, b.index(self.k - 1))

    # ---- places and comparisons

    def get(self, at: Value) -> Value:
        return self.b(t.Read, self.places, at, hint="place")

    def set(self, at: Value, place: Value) -> None:
        put(self.b, place, self.places, [at])

    def less(self, a: Value, b: Value) -> Value:
        """1 if position a comes before position b: its key is larger."""
        return self.b(t.Less, self.key(b), self.key(a), hint="before")

    def swap(self, i: Value, j: Value) -> None:
        a, b = self.get(i), self.get(j)
        self.set(i, b)
        self.set(j, a)

    def both(self, a: Value, b: Value) -> Value:
        return self.b.mul(a, b)

    def not_(self, a: Value) -> Value:
        return self.b.sub(self.b.index(1), a)

    # ---- partitions

    def _nth_element(self, nth: int) -> None:
        b = self.b
        depth = b.index(2 * (self.count.bit_length() - 1))
        zero, last = b.index(0), b.index(self.count)
        three = b.index(3)
        with b.repeat(b(t.Less, three, last), [zero, last, depth]) as loop:
            first, last, depth = loop.carried
            with b.when_less(depth, b.index(1)):
                self._heap_select(first, b.index(nth + 1), last)
                self.swap(first, b.index(nth))
                put(b, last, self.cell, [zero])  # nothing left to sort
            with b.when_less(zero, depth):
                self._partition(first, last)
            cut = b(t.Read, self.cell, zero, hint="cut")
            low = b(t.Less, cut, b.index(nth + 1), hint="low")  # cut <= nth
            ended = b(t.Less, depth, b.index(1), hint="ended")
            low = b.maximum(low, ended)
            first, last = choose(b, low, cut, first), choose(b, low, last, cut)
            loop.go = b(t.Less, three, b.sub(last, first))
            loop.next = (first, last, b.sub(depth, 1))
        first, last, _ = loop.results
        self._insertion_sort(first, last)

    def _partition(self, first: Value, last: Value) -> None:
        """__unguarded_partition_pivot; leaves the cut in the cell."""
        b = self.b
        middle = b.add(first, b.div(b.sub(last, first), 2))
        self.swap(first, self._median(b.add(first, 1), middle, b.sub(last, 1)))
        pivot, one = self.get(first), b.index(1)
        with b.repeat(one, [b.add(first, 1), last]) as loop:
            low, high = loop.carried
            with b.repeat(self.less(self.get(low), pivot), [low]) as up:
                up.next = (b.add(up.carried[0], 1),)
                up.go = self.less(self.get(up.next[0]), pivot)
            high = b.sub(high, 1)
            with b.repeat(self.less(pivot, self.get(high)), [high]) as down:
                down.next = (b.sub(down.carried[0], 1),)
                down.go = self.less(pivot, self.get(down.next[0]))
            low, high = up.results[0], down.results[0]
            loop.go = b(t.Less, low, high, hint="go")
            with b.when_less(low, high):
                self.swap(low, high)
            loop.next = (b.add(low, loop.go), high)
        put(b, loop.results[0], self.cell, [b.index(0)])

    def _median(self, a: Value, b: Value, c: Value) -> Value:
        x, y, z = self.get(a), self.get(b), self.get(c)
        xy, yz, xz = self.less(x, y), self.less(y, z), self.less(x, z)

        def pick(condition: Value, yes: Value, no: Value) -> Value:
            return choose(self.b, condition, yes, no)

        rising = pick(yz, b, pick(xz, c, a))
        falling = pick(xz, a, pick(yz, c, b))
        return pick(xy, rising, falling)

    def _insertion_sort(self, first: Value, last: Value) -> None:
        b = self.b
        with b.loop(b.add(first, 1), last, 1, hint="i") as loop:
            value = self.get(loop.counter)
            with b.repeat(self._above(first, loop.counter, value), [loop.counter]) as shift:
                at = shift.carried[0]
                before = b.sub(at, 1)
                self.set(at, self.get(before))
                shift.next = (before,)
                shift.go = self._above(first, before, value)
            self.set(shift.results[0], value)

    def _above(self, first: Value, at: Value, value: Value) -> Value:
        """Whether the element before ``at`` is there and comes after ``value``."""
        b = self.b
        there = b(t.Less, first, at, hint="there")
        before = b.maximum(b.sub(at, 1), 0)
        return self.both(there, self.less(value, self.get(before)))

    # ---- heaps

    def _heap_select(self, first: Value, middle: Value, last: Value) -> None:
        b = self.b
        length = b.sub(middle, first)
        # parents from (length - 2) / 2 down to 0
        parents = b.div(length, 2)
        with b.loop(b.index(0), parents, 1, hint="i") as loop:
            parent = b.sub(b.sub(parents, 1), loop.counter)
            self._adjust_heap(first, parent, length, self.get(b.add(first, parent)))
        with b.loop(middle, last, 1, hint="i") as loop:
            before = self.less(self.get(loop.counter), self.get(first))
            with b.when_less(b.index(0), before):
                self._pop_heap(first, middle, loop.counter)

    def _sort_heap(self, first: Value, last: Value) -> None:
        b = self.b
        with b.loop(b.index(1), b.sub(last, first), 1, hint="i") as loop:
            end = b.sub(last, loop.counter)
            self._pop_heap(first, end, end)

    def _pop_heap(self, first: Value, last: Value, result: Value) -> None:
        value = self.get(result)
        self.set(result, self.get(first))
        self._adjust_heap(first, self.b.index(0), self.b.sub(last, first), value)

    def _adjust_heap(self, first: Value, hole: Value, length: Value, value: Value) -> None:
        b, top = self.b, hole
        half = b.div(b.sub(length, 1), 2)
        with b.repeat(b(t.Less, hole, half), [hole]) as down:
            at = down.carried[0]
            right = b.mul(b.add(at, 1), 2)
            left = b.sub(right, 1)
            larger = self.less(self.get(b.add(first, right)), self.get(b.add(first, left)))
            child = choose(b, larger, left, right)
            self.set(b.add(first, at), self.get(b.add(first, child)))
            down.next = (child,)
            down.go = b(t.Less, child, half)
        hole = down.results[0]
        # a last parent with one child: 2 * hole + 2 == length
        only = b.sub(b.add(b.mul(hole, 2), 2), length)
        alone = self.both(b(t.Less, b.index(-1), only), b(t.Less, only, b.index(1)))
        child = b.add(b.mul(hole, 2), 1)
        with b.when_less(b.index(0), alone):
            self.set(b.add(first, hole), self.get(b.add(first, child)))
        hole = choose(b, alone, child, hole)
        with b.repeat(self._rises(first, top, hole, value), [hole]) as up:
            at = up.carried[0]
            parent = b.div(b.sub(at, 1), 2)
            self.set(b.add(first, at), self.get(b.add(first, parent)))
            up.next = (parent,)
            up.go = self._rises(first, top, parent, value)
        self.set(b.add(first, up.results[0]), value)

    def _rises(self, first: Value, top: Value, hole: Value, value: Value) -> Value:
        """Whether what is over the hole comes before ``value``."""
        b = self.b
        below = b(t.Less, top, hole, hint="below")
        parent = b.div(b.maximum(b.sub(hole, 1), 0), 2)
        return self.both(below, self.less(self.get(b.add(first, parent)), value))
