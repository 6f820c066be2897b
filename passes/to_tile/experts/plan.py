"""Which rows go to which expert: a counting sort of the router's choices, by one worker.

Every place is known only once all choices were counted, so that a channel between the two passes
would be as deep as the batch: a border between kernels, and this one the part behind it.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.emitter import TileBuilder

ONE = Layout(2)


def plan_program(experts: int, chosen: int, ids: DType, weights: DType, target: Target) -> Graph:
    """The tile program: ids [T, k] and weights [T, k] (dtypes ``ids``, ``weights``) ->

    active i32 [E + 1]: experts that have rows, ascending; starts i32 [E + 2]: where the rows of
    each begin among the sorted ones (past the last active one: where all end); tokens i32 [T * k]:
    the row of x of each sorted row; places i32 [T, k]: the sorted row of each choice; scales f32
    [T * k]: weights as the rows lie; wrong i32 [2]: how many ids are below 0, and E or more.

    Sorted stably. Ids from E on come last and belong to no expert.
    """
    rows, each = Size.of("T"), Size.of(chosen)
    every = rows * chosen
    writer = _Plan(experts, chosen)
    shapes: list[tuple[str, tuple[Size, ...], DType]] = [
        ("ids", (rows, each), ids),
        ("weights", (rows, each), weights),
        ("active", (Size.of(experts + 1),), I32),
        ("starts", (Size.of(experts + 2),), I32),
        ("tokens", (every,), I32),
        ("places", (rows, each), I32),
        ("scales", (every,), F32),
        ("wrong", (Size.of(2),), I32),
    ]
    params = tuple(Value(BufferType(s, d, len(s) - 1), name) for name, s, d in shapes)
    writer.write(*params)
    body = Region(params, tuple(writer.b.top.ops))
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 6, "target": target.name}
    return canonicalise_graph(Graph("tile", "plan_experts", ("T",), body, attrs))


class _Plan:
    def __init__(self, experts: int, chosen: int) -> None:
        self.b, self.experts, self.chosen = TileBuilder(), experts, chosen

    def write(
        self,
        ids: Value,
        weights: Value,
        active: Value,
        starts: Value,
        tokens: Value,
        places: Value,
        scales: Value,
        wrong: Value,
    ) -> None:
        b, zero, one = self.b, self.b.index(0), self.b.index(1)
        last = b.index(self.experts)
        rows = b.size(Size.of("T"))
        counts = b.scratch([self.experts + 1], I32, "counts")
        with b.loop(zero, b.add(last, 1), 1, hint="expert") as loop:
            self.put(zero, counts, loop.counter)
        with b.loop(zero, rows, 1, [zero], hint="row") as row:
            with b.loop(zero, b.index(self.chosen), 1, [row.carried[0]], hint="choice") as loop:
                at = b(t.Read, ids, row.counter, loop.counter, hint="id")
                expert = self.clamped(at)
                self.put(b.add(b(t.Read, counts, expert, hint="count"), 1), counts, expert)
                below = b(t.Less, at, zero, hint="below")
                loop.next = (b.add(loop.carried[0], below),)
            row.next = loop.results
        self.put(row.results[0], wrong, zero)
        # where each expert's rows begin, in the place of its count
        with b.loop(zero, last, 1, [zero, zero], hint="expert") as loop:
            number, start = loop.carried
            count = b(t.Read, counts, loop.counter, hint="count")
            self.put(loop.counter, active, number)
            self.put(start, starts, number)
            self.put(start, counts, loop.counter)
            loop.next = (b.add(number, b(t.Less, zero, count, hint="some")), b.add(start, count))
        number, total = loop.results
        self.put(b.sub(b.mul(rows, self.chosen), total), wrong, one)
        self.put(total, counts, last)
        with b.loop(number, b.index(self.experts + 2), 1, hint="rest") as loop:
            self.put(total, starts, loop.counter)
        with b.loop(number, b.index(self.experts + 1), 1, hint="rest") as loop:
            self.put(zero, active, loop.counter)
        with (
            b.loop(zero, rows, 1, hint="row") as row,
            b.loop(zero, b.index(self.chosen), 1, hint="choice") as loop,
        ):
            expert = self.clamped(b(t.Read, ids, row.counter, loop.counter, hint="id"))
            place = b(t.Read, counts, expert, hint="place")
            self.put(b.add(place, one), counts, expert)
            self.put(row.counter, tokens, place)
            self.put(place, places, row.counter, loop.counter)
            weight = b.load(weights, [row.counter, loop.counter], (-1, -1), ONE, hint="weight")
            weight = b(m.Cast, weight, dtype=F32, hint="weight")
            b.store(weight, scales, [place], (-1,))

    def clamped(self, expert: Value) -> Value:
        """An id within the counters: below 0 it is wrong, from E on no expert."""
        return self.b.minimum(self.b.maximum(expert, 0), self.experts)

    def put(self, number: Value, memory: Value, *at: Value) -> None:
        b = self.b
        tile = b(m.Cast, b.splat(number), dtype=I32, hint=number.hint)
        b.store(tile, memory, list(at), (-1,) * len(at))
