"""Operations in the order that keeps few registers: what is cheap to make is made where it is used.

A tile that is larger than what it is made from (a mask out of positions, a row's number beside
every score) takes registers from the moment it is there. On whole blocks it stands where it was
first thought of; here it moves down to the first operation that needs it.

    mask = compare(rows, columns)               s = product(…)
    s = product(…)                     ->       mask = compare(rows, columns)
    select(mask, s, -inf)                       select(mask, s, -inf)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.to_threads.registers import words

_CHEAP = (t.Coordinate, t.Splat, t.Unpack, m.Const, View)


def ordered(graph: Graph) -> Graph:
    """The program with cheap tiles made as late as they can be; memory is touched in the same
    order."""
    return graph.with_body(_Region(graph.body, {}).run())


def free_values(op: Op) -> Iterator[Value]:
    """What an operation and those inside it use, in order."""
    yield from op.operands
    for region in op.regions:
        for inner in region.ops:
            yield from free_values(inner)
        yield from region.yields


class _Region:
    """One region; ``mapping``: values of the old program to those of the new."""

    def __init__(self, region: Region, mapping: dict[Value, Value]) -> None:
        self.region, self.mapping = region, dict(mapping)
        self.needs = {op: tuple(free_values(op)) for op in region.ops}
        self.uses = Counter(v for needed in self.needs.values() for v in needed)
        self.uses.update(region.yields)
        self.made = {v: op for op in region.ops for v in op.results}
        self.waiting: dict[Op, None] = {}
        self.out: list[Op] = []

    def run(self) -> Region:
        for op in self.region.ops:
            if self._waits(op):
                self.waiting[op] = None
            else:
                self._place(op)
        for value in self.region.yields:
            self._settle(value)
        yields = tuple(self.mapping.get(v, v) for v in self.region.yields)
        return Region(self.region.params, tuple(self.out), yields)

    def _settle(self, value: Value) -> None:
        """Makes a value that has been put off."""
        op = self.made.get(value)
        if op in self.waiting:
            self._place(op)

    def _place(self, op: Op) -> None:
        self.waiting.pop(op, None)
        for value in self.needs[op]:
            self._settle(value)
        self.uses.subtract(self.needs[op])
        regions = [_Region(region, self.mapping).run() for region in op.regions]
        fresh = op.rebuilt([self.mapping.get(v, v) for v in op.operands], regions or None)
        self.mapping.update(zip(op.results, fresh.results, strict=True))
        self.out.append(fresh)

    def _waits(self, op: Op) -> bool:
        """True for pure tiles that are not smaller than what they would keep alive."""
        pure = "pointwise" in op.traits or isinstance(op, _CHEAP)
        tiles = [v for v in op.results if isinstance(v.type, RegisterType)]
        if not pure or not tiles:
            return False
        kept = {v for v in op.operands if self.uses[v] == 1}
        return sum(map(words, kept)) <= sum(map(words, tiles))
