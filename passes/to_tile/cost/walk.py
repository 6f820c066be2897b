"""Counts instructions of a tile program by walking it: what closed forms are held against.

Loops are run as often as they are for given sizes, by evaluating run-time integers; a loop whose
body does the same in every turn is walked once. What does not change in a loop is counted before
it, as the code generator moves it there, and equal operations beside each other count once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType, IndexType, RegisterType
from tilewright.passes.to_tile.cost.counts import NOTHING, Counts, Section, total
from tilewright.passes.to_tile.cost.operations import (
    butterfly,
    latency,
    packed,
    pointwise,
    products,
    reduction,
    registers,
    transposition,
    uniform,
    weaving,
)

Known = dict[Value, int | None]  # run-time integers; None: different from turn to turn
_INTEGERS: dict[type[Op], Callable[[int, int], int]] = {
    m.Add: lambda a, b: a + b,
    m.Sub: lambda a, b: a - b,
    m.Mul: lambda a, b: a * b,
    m.Div: lambda a, b: a // b if b else 0,
    m.Mod: lambda a, b: a - (a // b if b else 0) * b,
    m.Min: min,
    m.Max: max,
    t.Less: lambda a, b: int(a < b),
}


class _Varies(Exception):
    """A loop's end or a condition depends on a counter that was not followed."""


def work_items(graph: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """The positions of all work items on the grid."""
    grid = graph.attrs["grid"]
    return itertools.product(*(range(-(-size.evaluate(sizes) // tile)) for size, tile in grid))


def count_program(graph: Graph, sizes: Mapping[str, int], target: Target) -> Counts:
    """Instructions of all work items of a tile program. Raises UnsupportedError for programs whose
    loops depend on what lies in memory."""
    return total(walk_program(graph, sizes, target))


def walk_program(graph: Graph, sizes: Mapping[str, int], target: Target) -> list[Section]:
    """The straight-line parts of a tile program with how often each runs in all work items."""
    walker = Walker(graph, sizes, target)
    for item in work_items(graph, sizes):
        walker.item(item)
    return walker.sections()


class Walker:
    """Walks one program for given sizes, adding up how often each region runs."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], target: Target) -> None:
        self.graph, self.sizes, self.target = graph, sizes, target
        self.home: dict[int, list[Op]] = {}  # by id of a region
        self.turns: dict[int, int] = {}
        self.regions: dict[int, tuple[str, Region]] = {id(graph.body): ("item", graph.body)}
        self.known: dict[object, Op] = {}
        self.same: dict[Value, Value] = {}  # a value -> the first that is equal, in the same place
        self._settle(graph.body, [graph.body], {}, 0)

    def _settle(
        self, region: Region, around: list[Region], depth: dict[Value, int], fence: int
    ) -> None:
        """Puts pure operations where their operands are all known, no further than ``fence``."""
        here = len(around) - 1
        for param in region.params:
            depth[param] = here
        for op in region.ops:
            at = here
            if "pure" in op.traits and not op.regions:
                at = max([fence, *(depth.get(v, 0) for v in op.operands)])
            inner = here + 1 if isinstance(op, t.If) else fence
            for nested in op.regions:  # first: what moves out of it stands before it
                self.regions[id(nested)] = (
                    nested.params[0].hint if nested.params else "if",
                    nested,
                )
                self._settle(nested, [*around, nested], depth, inner)
            self.home.setdefault(id(around[at]), []).append(op)
            if "pure" in op.traits and not op.regions:
                given = tuple(self.same.get(v, v) for v in op.operands)
                first = self.known.setdefault((id(around[at]), op.name, given, repr(op.attrs)), op)
                self.same.update(zip(op.results, first.results, strict=True))
            for result in op.results:
                depth[result] = at

    def item(self, at: tuple[int, ...]) -> None:
        """One more work item."""
        self.at = at
        try:
            self._region(self.graph.body, {}, 1)
        except _Varies as error:
            raise UnsupportedError(f"{self.graph.name}: loops that memory decides") from error

    def sections(self) -> list[Section]:
        """What the items so far did."""
        found = []
        for key, turns in self.turns.items():
            name, region = self.regions[key]
            counts = self._own(region)
            found.append(Section(name, counts, float(turns), chain_of(region, self.target)))
        return found

    def _own(self, region: Region) -> Counts:
        """Instructions of a region but not of those inside it; of equal ones only one."""
        found = NOTHING
        for op in self.home.get(id(region), ()):
            index = op.results and isinstance(op.results[0].type, IndexType)
            again = op.results and self.same.get(op.results[0], op.results[0]) is not op.results[0]
            if not (op.regions or index or again):
                found = found + self._instructions(op)
        return found

    def _region(self, region: Region, known: Known, times: int) -> None:
        self.turns[id(region)] = self.turns.get(id(region), 0) + times
        for op in self.home.get(id(region), ()):
            if isinstance(op, t.For):
                self._loop(op, known, times)
            elif isinstance(op, t.If):
                lo, hi = (self._need(known, v) for v in op.operands)
                if lo < hi:
                    self._region(op.regions[0], known, times)
            elif isinstance(op, t.While):
                raise UnsupportedError(f"{self.graph.name}: a loop without a known end", op.loc)
            elif op.results and isinstance(op.results[0].type, IndexType):
                known[op.results[0]] = self._integer(op, known)

    def _need(self, known: Known, value: Value) -> int:
        number = known.get(value)
        if number is None:
            raise _Varies
        return number

    def _loop(self, op: t.For, known: Known, times: int) -> None:
        turns = range(self._need(known, op.lo), self._need(known, op.hi), op.step)
        body = op.regions[0]
        for result, init in zip(op.results, op.inits, strict=True):
            known[result] = known.get(init)
        if not turns:
            return
        if not any(isinstance(v.type, IndexType) for v in op.inits):
            before = dict(self.turns)
            try:
                self._region(body, {**known, body.params[0]: None}, times * len(turns))
                return
            except _Varies:
                self.turns = before
        carried = [known.get(v) for v in op.inits]
        for turn in turns:
            inner = {**known, body.params[0]: turn}
            inner.update(zip(body.params[1:], carried, strict=True))
            self._region(body, inner, times)
            carried = [inner.get(v) for v in body.yields]
        known.update(zip(op.results, carried, strict=True))

    def _integer(self, op: Op, known: Known) -> int | None:
        if isinstance(op, m.Const):
            return int(op.value)
        if isinstance(op, t.SizeOf):
            return int(op.size.evaluate(self.sizes))
        if isinstance(op, t.BlockId):
            return self.at[op.dim]
        given = [known.get(v) for v in op.operands]
        rule = _INTEGERS.get(type(op))
        if rule is None or None in given:
            return None
        a, b = given
        assert a is not None and b is not None
        return rule(a, b)

    def _instructions(self, op: Op) -> Counts:
        """Of one operation that is no control flow."""
        if isinstance(op, t.Load):
            return loading(op.result.type, op.source, op.dims, op.bounds)
        if isinstance(op, t.Store):
            return storing(op.value.type, op.target, op.dims)
        if isinstance(op, t.Prefetch):
            held = RegisterType(op.source.type.dtype, op.layout)  # type: ignore[union-attr]
            step = max(1, 64 * 8 // (op.layout.lanes * packed(held) * held.dtype.bits))
            return Counts(prefetch=-(-registers(held) // step))
        if not op.results or not isinstance(op.result.type, RegisterType):
            return NOTHING
        return self._on_registers(op, op.result.type)

    def _on_registers(self, op: Op, made: RegisterType) -> Counts:
        many, alone = float(registers(made)), uniform(made.layout)
        if isinstance(op, t.Dot):
            return products(op, self.target)
        if isinstance(op, t.Reduce):
            return reduction(op, self.target)
        if isinstance(op, t.ReduceToLanes):
            return butterfly(made.layout.lanes)
        if isinstance(op, t.Transpose):
            return transposition(made.layout.lanes)
        if isinstance(op, t.Gather):
            return Counts(broadcast=many) if alone else Counts(gather=many)
        if isinstance(op, t.PackPairs):
            given = op.x.type
            assert isinstance(given, RegisterType)
            rows = given.shape[0]
            return weaving(rows, registers(given) // rows, given.dtype != op.dtype, self.target)
        operand = op.operands[0].type if op.operands else None
        if isinstance(op, m.Select):
            operand = op.lhs.type
        one = pointwise(op, getattr(operand, "dtype", None), self.target)
        return Counts(scalar=one.vector * many) if alone else one * many


def loading(made: object, memory: Value, dims: tuple[int, ...], bounds: t.Bounds) -> Counts:
    """Of a load: whole registers where lanes lie side by side in memory, with a shuffle where they
    hold copies, else lane by lane."""
    assert isinstance(made, RegisterType)
    many = registers(made)
    if uniform(made.layout):
        return Counts(broadcast=many)
    places = lane_places(made.layout, strides_of(memory, dims), bounds)
    if places is not None and places == tuple(range(0, len(places) * packed(made), packed(made))):
        return Counts(load=many)
    zeros = any(kind == "zero" for _, kind in bounds)
    if places is not None and not zeros and min(places) == 0 and max(places) < len(places):
        return Counts(load=many, shuffle=many)
    return Counts(lane=many * made.layout.lanes, shuffle=many * made.layout.lanes)


def storing(held: object, memory: Value, dims: tuple[int, ...]) -> Counts:
    """Of a store; lanes that hold the same element write it once."""
    assert isinstance(held, RegisterType)
    many = registers(held)
    if uniform(held.layout):
        return Counts(store=many)
    places = lane_places(held.layout, strides_of(memory, dims), ())
    first = tuple(dict.fromkeys(places or ()))
    together = tuple(range(0, len(first) * packed(held), packed(held)))
    if first and first == together and (places or ())[: len(first)] == first:
        return Counts(store=many)
    return Counts(lane=many * held.layout.lanes, shuffle=many * held.layout.lanes)


def strides_of(memory: Value, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one position on a tile's dimension to the next; -1 where that is a run-time
    value."""
    type_, found = memory.type, [0] * (max(dims, default=0) + 1)
    inner, rank = 1, len(dims)
    for at in range(rank - 1, -1, -1):
        stride = inner if not isinstance(type_, BufferType) else 1 if at == type_.unit else -1
        if dims[at] >= 0:
            found[dims[at]] = stride
        if not isinstance(type_, BufferType):
            inner *= int(type_.shape[at])  # type: ignore[union-attr,arg-type]
    return tuple(found)


@lru_cache(maxsize=4096)
def lane_places(
    layout: Layout, strides: tuple[int, ...], bounds: t.Bounds
) -> tuple[int, ...] | None:
    """Where the lanes of a register lie from the first on, None if that is not known."""
    rows = [layout.index(lane, 0) for lane in range(layout.lanes)]
    clamped = {dim for dim, kind in bounds if kind == "clamp"}
    for dim, size in enumerate(layout.shape):
        stride = strides[dim] if dim < len(strides) else 0
        moves = size > 1 and any(row[dim] != rows[0][dim] for row in rows)
        if moves and (stride < 0 or dim in clamped):
            return None
    known = [s if s > 0 else 0 for s in (*strides, 0, 0, 0)]
    return tuple(sum(i * known[d] for d, i in enumerate(row)) for row in rows)


def chain_of(region: Region, target: Target) -> float:
    """Cycles from the values that a loop carries to those of its next turn."""
    longest = 0.0
    for param, wanted in zip(region.params[1:], region.yields, strict=False):
        if not isinstance(param.type, RegisterType):
            continue
        reached: dict[Value, float] = {param: 0.0}
        for op in region.ops:
            given = [reached[v] for v in op.operands if v in reached]
            if given and op.results:
                reached[op.results[0]] = max(given) + latency(op)
        longest = max(longest, reached.get(wanted, 0.0))
    return longest
