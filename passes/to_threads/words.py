"""Words that threads read for themselves, a turn of a loop before they are unpacked.

    for block {                               words = those of the first block
      words = gather memory, block     ->     for block, words {
      product(…, unpack(words))                 product(…, unpack(words))
    }                                           words = gather memory, the next block
                                              }

A product's words are read again right behind it, into the registers that it has just left: no more
are needed, and the rest of the turn hides how long memory takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Region, Value
from tilewright.ir.types import RegisterType
from tilewright.passes.to_threads.families import Families
from tilewright.passes.to_threads.layouts import ROWS, BlockLayouts, holds_words
from tilewright.passes.to_threads.slices import Turns, slice_of
from tilewright.passes.to_tile.emitter import TileBuilder


@dataclass(frozen=True)
class Fetched:
    """Words of a loop: what reads them, for which family of threads' parts, what says where they
    lie, and the product after which those of the next turn are read."""

    load: t.Load | t.Gather
    family: str
    place: tuple[Op, ...]
    product: t.Product


class WordsAhead:
    """Part of the lowering to threads (lower.Lowering)."""

    build: TileBuilder
    layouts: BlockLayouts
    values: dict[tuple[Value, str], Value]
    families: Families
    fetched: set[Value]

    def _op(self, op: Op) -> None:
        """Lowers an operation."""
        raise NotImplementedError

    def _fetched(self, loop: t.For) -> list[Fetched]:
        """The words of a loop whose place is known a turn ahead; none of a loop over blocks that an
        end may cut: these are few."""
        region, found = loop.regions[0], list[Fetched]()
        for product in region.ops:
            if not isinstance(product, t.Product):
                continue
            for load in _reads(region, product.b):
                families = self.families.get(load.result, set())
                place = slice_of(region, load.operands)
                family = next(iter(families)) if len(families) == 1 else ""
                if place is not None and holds_words(family):
                    found.append(Fetched(load, family, place, product))
        cut = any(isinstance(x.load, t.Load) and x.load.bounds for x in found)
        return [] if cut else found

    def _first_words(self, fetched: list[Fetched], turns: Turns) -> tuple[Value, ...]:
        """The words of the first turn, if there is one: read in a loop that ends after it."""
        if not fetched:
            return ()
        b, nothing = self.build, []
        for x in fetched:
            type_ = x.load.result.type
            assert isinstance(type_, RegisterType)
            layout = self.layouts.of(x.family, type_.shape)
            nothing.append(b.filled(0, type_.dtype, layout))
        end = b.minimum(turns.hi, b.add(turns.lo, 1))
        with b.loop(turns.lo, end, 1, nothing, "first") as loop:
            loop.next = tuple(self._read(x, turns, loop.counter) for x in fetched)
        return loop.results

    def _with_words(
        self,
        region: Region,
        fetched: list[Fetched],
        words: tuple[Value, ...],
        turns: Turns,
        counter: Value,
    ) -> list[Value]:
        """Lowers a loop's body, whose words have been read; those of the next turn. (In the last
        turn its own again: there is nothing behind them.)"""
        b, later = self.build, dict[Op, Value]()
        for x, word in zip(fetched, words, strict=True):
            word.hint = x.load.result.hint
            self.values[x.load.result, x.family] = word
            self.fetched.add(x.load.result)
        for op in region.ops:
            self._op(op)
            behind = [x for x in fetched if x.product is op]
            if behind:
                after = b.minimum(b.add(counter, turns.step), turns.last(b))
                later |= {x.load: self._read(x, turns, after) for x in behind}
        self.fetched -= {x.load.result for x in fetched}
        return [later[x.load] for x in fetched]

    def _read(self, x: Fetched, turns: Turns, at: Value) -> Value:
        """The words of the turn at a counter."""
        before, fetched = dict(self.values), self.fetched
        self.fetched = set()
        self.values[turns.counter, ROWS] = at
        for op in (*x.place, x.load):
            self._op(op)
        found = self.values[x.load.result, x.family]
        self.values, self.fetched = before, fetched
        return found


def _reads(region: Region, value: Value) -> list[t.Load | t.Gather]:
    """What of a region reads the words that a tile is made from."""
    made = {v: op for op in region.ops for v in op.results}
    found: dict[t.Load | t.Gather, None] = {}
    rest, seen = [value], set[Value]()
    while rest:
        op = made.get(rest.pop())
        if op is None or op.results[0] in seen:
            continue
        seen.add(op.results[0])
        if isinstance(op, t.Load | t.Gather):
            found[op] = None
        else:
            rest.extend(op.operands)
    return list(found)
