"""Loops: their variables and what these become in each turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.backends.numba.chains import Users, is_chained
from tilewright.backends.numba.registers import Tile, indices, tile_of
from tilewright.backends.numba.text import Index, PythonText
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Region, Value
from tilewright.ir.types import IndexType


class LoopEmitter:
    """Writes the loops of one program. ``held`` says what stands for a value: a name, a tile,
    memory; ``chosen`` the names that a value's elements have to get."""

    def __init__(
        self,
        text: PythonText,
        held: dict[Value, Any],
        used: Users,
        region: Callable[[Region], None],
    ) -> None:
        self.text, self.held, self.used, self.region = text, held, used, region
        self.chosen: dict[Value, dict[Index, str]] = {}

    def write(self, op: t.For) -> None:
        """Writes a loop and says what stands for its results."""
        region = op.regions[0]
        params, yields = region.params[1:], region.yields
        self._begin(region, params, op.inits, op.results, yields)
        counter = self.text.name(region.params[0].hint)
        self.held[region.params[0]] = counter
        lo, hi = self.held[op.lo], self.held[op.hi]
        given = f"{lo}, {hi}, {op.step}" if op.step != 1 else f"{lo}, {hi}" if lo != "0" else hi
        with self.text.block(f"for {counter} in range({given})"):
            self.region(region)
            self._carry(params, yields)

    def write_while(self, op: t.While) -> None:
        """The same with a condition, which is a variable too."""
        region = op.regions[0]
        go, yields = self.text.name("go"), region.yields[1:]
        self.text.line(f"{go} = {self.held[op.go]}")
        self._begin(region, region.params, op.inits, op.results, yields)
        with self.text.block(f"while {go} > 0"):
            self.region(region)
            self.text.line(f"{go} = {self.held[region.yields[0]]}")
            self._carry(region.params, yields)

    def _begin(
        self,
        region: Region,
        params: tuple[Value, ...],
        inits: tuple[Value, ...],
        results: tuple[Value, ...],
        yields: tuple[Value, ...],
    ) -> None:
        """Gives every carried value a variable, and that its first value."""
        for param, init, result, value in zip(params, inits, results, yields, strict=True):
            variable = self._variable(param, value)
            self._start(elements(variable), elements(self.held[init]))
            self.held[param] = self.held[result] = variable
            if isinstance(variable, Tile) and self._becomes(param, value, region):
                self.chosen[value] = variable.elements

    def _variable(self, param: Value, value: Value) -> Any:
        """Names of a loop's variable, after what it becomes in each turn."""
        hint = value.hint or param.hint
        if isinstance(param.type, IndexType):
            return self.text.name(hint)
        return Tile(tile_of(param.type).shape, self.text.names(hint, indices(param.type)))

    def _start(self, targets: list[str], given: list[str]) -> None:
        if len(set(given)) > 1:
            for target, source in zip(targets, given, strict=True):
                self.text.line(f"{target} = {source}")
            return
        for at in range(0, len(targets), 4):  # all the same: a line for four
            self.text.line(f"{' = '.join(targets[at : at + 4])} = {given[0]}")

    def _becomes(self, param: Value, value: Value, region: Region) -> bool:
        """True if ``value`` may be written over ``param`` at once: it is computed element by
        element, and nothing else reads the old elements."""
        made = next((op for op in region.ops if value in op.results), None)
        if made is None or self.used.get(param) != [made] or region.yields.count(value) > 1:
            return False
        if isinstance(made, t.Dot):
            return made.acc is param
        return is_chained(made) and param.type == value.type

    def _carry(self, params: tuple[Value, ...], yields: tuple[Value, ...]) -> None:
        """Assigns the next values; all at once if one of them is a variable that changes too."""
        pairs = [
            pair
            for param, value in zip(params, yields, strict=True)
            for pair in zip(elements(self.held[param]), elements(self.held[value]), strict=True)
            if pair[0] != pair[1]
        ]
        targets, sources = [a for a, _ in pairs], [b for _, b in pairs]
        if set(sources) & set(targets):
            self.text.line(f"{', '.join(targets)} = {', '.join(sources)}")
            return
        for target, source in pairs:
            self.text.line(f"{target} = {source}")


def elements(held: Any) -> list[str]:
    """What stands for a value's elements, in the order of its registers."""
    return list(held.elements.values()) if isinstance(held, Tile) else [held]
