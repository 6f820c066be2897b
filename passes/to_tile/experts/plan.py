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


def plan_program(
    experts: int, chosen: int, ids: DType, weights: DType, base: int, target: Target
) -> Graph:
    """The tile program: ids [T, k] and weights [T, k] (dtypes ``ids``, ``weights``) ->

    active i32 [E + 1]: experts that have rows, ascending; starts i32 [E + 2]: where the rows of
    each begin among the sorted ones (past the last active one: where all end); tokens i32 [T * k]:
    the row of x of each sorted row; places i32 [T, k]: the sorted row of each choice; scales f32
    [T * k]: weights as the rows lie; wrong i32 [2]: how many ids are below 0, and E or more.

    Sorted stably. Ids from E on come last and belong to no expert.

    With ``base`` above 0 it reads adapters i32 [T] and map i32 [A, base] besides: of the ``base``
    experts that ids name, a token of adapter a >= 0 means expert map[a, id] of the E instead (a
    count in ``wrong`` of ids below 0 has those from ``base`` on, too).
    """
    rows, each = Size.of("T"), Size.of(chosen)
    every = rows * chosen
    writer = _Plan(experts, chosen, base)
    adapters = (("adapters", (rows,), I32), ("map", (Size.of("A"), Size.of(base)), I32))
    shapes: list[tuple[str, tuple[Size, ...], DType]] = [
        ("ids", (rows, each), ids),
        ("weights", (rows, each), weights),
        *(adapters if base else ()),
        ("active", (Size.of(experts + 1),), I32),
        ("starts", (Size.of(experts + 2),), I32),
        ("tokens", (every,), I32),
        ("places", (rows, each), I32),
        ("scales", (every,), F32),
        ("wrong", (Size.of(2),), I32),
    ]
    params = tuple(Value(BufferType(s, d, len(s) - 1), name) for name, s, d in shapes)
    writer.reads(params[2:4] if base else ())
    writer.write(*params[:2], *params[-6:])
    body = Region(params, tuple(writer.b.top.ops))
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 6, "target": target.name}
    sizes = ("T", "A") if base else ("T",)
    return canonicalise_graph(Graph("tile", "plan_experts", sizes, body, attrs))


class _Plan:
    def __init__(self, experts: int, chosen: int, base: int) -> None:
        self.b, self.experts, self.chosen, self.base = TileBuilder(), experts, chosen, base
        self.adapters: tuple[Value, ...] = ()

    def reads(self, adapters: tuple[Value, ...]) -> None:
        """The adapters of the tokens and their map, if there are any."""
        self.adapters = adapters

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
            adapter = self.adapter(row.counter)
            with b.loop(zero, b.index(self.chosen), 1, [row.carried[0]], hint="choice") as loop:
                at = b(t.Read, ids, row.counter, loop.counter, hint="id")
                expert = self.clamped(self.rerouted(at, adapter))
                self.put(expert, places, row.counter, loop.counter)  # until its place is known
                self.put(b.add(b(t.Read, counts, expert, hint="count"), 1), counts, expert)
                loop.next = (b.add(loop.carried[0], self.outside(at)),)
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
            expert = b(t.Read, places, row.counter, loop.counter, hint="expert")
            place = b(t.Read, counts, expert, hint="place")
            self.put(b.add(place, one), counts, expert)
            self.put(row.counter, tokens, place)
            self.put(place, places, row.counter, loop.counter)
            weight = b.load(weights, [row.counter, loop.counter], (-1, -1), ONE, hint="weight")
            weight = b(m.Cast, weight, dtype=F32, hint="weight")
            b.store(weight, scales, [place], (-1,))

    def adapter(self, row: Value) -> Value | None:
        """The adapter of a token, if there are any."""
        return self.b(t.Read, self.adapters[0], row, hint="adapter") if self.adapters else None

    def rerouted(self, expert: Value, adapter: Value | None) -> Value:
        """The expert that an id means to a token of an adapter."""
        b = self.b
        if adapter is None:
            return expert
        inside = b.minimum(b.maximum(expert, 0), self.base - 1)
        mapped = b(t.Read, self.adapters[1], b.maximum(adapter, 0), inside, hint="mapped")
        own = b(t.Less, b.index(-1), adapter, hint="own")
        return b.add(expert, b.mul(own, b.sub(mapped, expert)))

    def outside(self, expert: Value) -> Value:
        """1 if an id is wrong whatever adapter there is."""
        b = self.b
        below = b(t.Less, expert, b.index(0), hint="below")
        if not self.adapters:
            return below
        return b.add(below, b(t.Less, b.index(self.base - 1), expert, hint="above"))

    def clamped(self, expert: Value) -> Value:
        """An id within the counters: below 0 it is wrong, from E on no expert."""
        return self.b.minimum(self.b.maximum(expert, 0), self.experts)

    def put(self, number: Value, memory: Value, *at: Value) -> None:
        b = self.b
        tile = b(m.Cast, b.splat(number), dtype=I32, hint=number.hint)
        b.store(tile, memory, list(at), (-1,) * len(at))
