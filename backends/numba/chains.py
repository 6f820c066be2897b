"""Pointwise operations, put off until their results are needed and then written as chains.

Numba's compile time grows with the length of the text. A chain of n operations on a tile of 16
elements takes 16 n lines written out; as a function of one element, called for each, it takes
n + 16, and blocks with and without bounds share it. LLVM inlines the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Protocol

from tilewright.backends.numba.functions import Functions
from tilewright.backends.numba.pointwise import expression
from tilewright.backends.numba.registers import Tile, indices, tile_of
from tilewright.backends.numba.text import Index, PythonText
from tilewright.ir import ops_math as m
from tilewright.ir.core import Op, Region, Value
from tilewright.ir.types import RegisterType

LINES_WORTH_A_FUNCTION = 24  # compiling a function of its own costs as much as so many lines

Users = Mapping[Value, list[Op | None]]


class Values(Protocol):
    """Where operands are found and results are put."""

    def tile(self, value: Value) -> Tile: ...
    def names(self, value: Value) -> dict[Index, str]: ...
    def keep(self, value: Value, held: object) -> None: ...
    def assigned(self, value: Value, elements: dict[Index, str]) -> Tile: ...


def is_chained(op: Op) -> bool:
    """True for an operation that computes every element of a tile from elements."""
    pointwise = "pointwise" in op.traits and not isinstance(op, m.Const)
    return pointwise and isinstance(op.operands[0].type, RegisterType)


def reads(op: Op) -> set[Value]:
    """The values that an operation takes, those in its regions included."""
    found = set(op.operands)
    for region in op.regions:
        found |= _read_in(region)
    return found


def _read_in(region: Region) -> set[Value]:
    found = set(region.yields)
    for op in region.walk():
        found.update(op.operands)
        for inner in op.regions:
            found.update(inner.yields)
    return found


class ChainEmitter:
    """Writes pointwise operations into one function, and the functions that they call."""

    def __init__(self, text: PythonText, functions: Functions, values: Values, used: Users) -> None:
        self.text, self.functions, self.values, self.used = text, functions, values, used
        self.waiting: list[Op] = []

    def add(self, op: Op) -> None:
        """Takes an operation; it is written when its result is needed."""
        self.waiting.append(op)

    def write(self, needed: Iterable[Value]) -> None:
        """Writes the waiting operations that these values need."""
        wanted, chosen = set(needed), []
        for op in reversed(self.waiting):
            if op.result in wanted:
                chosen.append(op)
                wanted.update(op.operands)
        self.waiting = [op for op in self.waiting if op not in chosen]
        for chain in _chains(chosen[::-1]):
            self._write_chain(chain)

    def _write_chain(self, chain: list[Op]) -> None:
        count = len(indices(chain[0].result.type))
        if count > 1 and (len(chain) - 1) * count >= LINES_WORTH_A_FUNCTION:
            self._call(chain)
            return
        for op in chain:
            inputs = [self.values.tile(v) for v in op.operands]
            every = indices(op.result.type)
            found = {i: expression(op, [x.at(i) for x in inputs]) for i in every}
            self.values.keep(op.result, self.values.assigned(op.result, found))

    def _call(self, chain: list[Op]) -> None:
        """One call per element."""
        made = {op.result for op in chain}
        outputs = [op.result for op in chain if self._leaves(op.result, chain)]
        inputs = list(dict.fromkeys(v for op in chain for v in op.operands if v not in made))
        tiles = {v: self.values.tile(v) for v in inputs}
        passed = [v for v in inputs if not tiles[v].constant]
        function = self._function(chain, tiles, passed, outputs)
        results = {v: self.values.names(v) for v in outputs}
        for index in indices(chain[0].result.type):
            targets = ", ".join(results[v][index] for v in outputs)
            given = ", ".join(tiles[v].at(index) for v in passed)
            self.text.line(f"{targets} = {function}({given})")
        for v in outputs:
            self.values.keep(v, Tile(tile_of(v.type).shape, results[v]))

    def _leaves(self, value: Value, chain: list[Op]) -> bool:
        return any(op is None or op not in chain for op in self.used.get(value, []))

    def _function(
        self,
        chain: list[Op],
        tiles: Mapping[Value, Tile],
        passed: list[Value],
        outputs: list[Value],
    ) -> str:
        """The name of the function that computes one element."""
        body = PythonText(self.text.reserved)
        body.depth = 1
        held = {v: next(iter(x.elements.values())) for v, x in tiles.items()}
        held.update({v: body.name(v.hint) for v in passed})
        parameters = [held[v] for v in passed]
        for op in chain:
            text = expression(op, [held[v] for v in op.operands])
            held[op.result] = body.bind(op.result.hint, text)
        body.line(f"return {', '.join(held[v] for v in outputs)}")
        hint = outputs[-1].hint or chain[-1].name.split(".")[-1]
        return self.functions.add(f"{hint}_element", parameters, body.lines)


def _chains(ops: list[Op]) -> Iterator[list[Op]]:
    """Operations on tiles of one shape together, small tiles first: no tile needs a larger one."""

    def shape(op: Op) -> tuple[int, Index]:
        type_ = tile_of(op.result.type)
        return type_.layout.registers, type_.shape

    for _, chain in groupby(sorted(ops, key=shape), key=shape):
        yield list(chain)
