"""Loops: their variables, what these become in each turn, and long ones as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.backends.numba.functions import LINES_WORTH_A_FUNCTION, Functions, wrapped
from tilewright.backends.numba.outline import Users, is_chained
from tilewright.backends.numba.registers import Tile, indices, tile_of
from tilewright.backends.numba.text import Index, PythonText
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Region, Value
from tilewright.ir.types import IndexType, RegisterType


class LoopEmitter:
    """Writes the loops of one program. ``held`` says what stands for a value: a name, a tile, memory;
    ``chosen`` the names that a value's elements have to get."""

    def __init__(
        self,
        text: PythonText,
        functions: Functions,
        held: dict[Value, Any],
        used: Users,
        region: Callable[[Region], None],
    ) -> None:
        self.text, self.functions, self.held, self.used = text, functions, held, used
        self.region = region
        self.chosen: dict[Value, dict[Index, str]] = {}

    def write(self, op: t.For) -> None:
        """Writes a loop in place, or as a call of a function if it is long."""
        if _lines(op) < LINES_WORTH_A_FUNCTION:
            self._in_place(op)
            return
        text, outer, start = self.text, set(self.text.origin), len(self.text.lines)
        depth, text.depth = text.depth, 1
        self._in_place(op)
        body, text.depth = text.lines[start:], depth
        del text.lines[start:]
        results = [n for v in op.results if v in self.used for n in elements(self.held[v])]
        hint = op.results[0].hint if op.results else op.regions[0].params[0].hint
        function, passed = self.functions.outlined(f"{hint}_loop", body, outer, results)
        indent = "    " * depth
        if not results:
            text.lines += wrapped(f"{function}(", passed, ")", indent)
        elif len(results) == 1:
            text.lines += wrapped(f"{results[0]} = {function}(", passed, ")", indent)
        else:
            *first, last = wrapped("(", results, ") = ", indent)
            text.lines += [*first, *wrapped(f"{last[len(indent):]}{function}(", passed, ")", indent)]

    def _in_place(self, op: t.For) -> None:
        region = op.regions[0]
        params, yields = region.params[1:], region.yields
        for param, init, result, value in zip(params, op.inits, op.results, yields, strict=True):
            variable = self._variable(param, value)
            self._start(elements(variable), elements(self.held[init]))
            self.held[param] = self.held[result] = variable
            if isinstance(variable, Tile) and self._becomes(param, value, region):
                self.chosen[value] = variable.elements
        counter = self.text.name(region.params[0].hint)
        self.held[region.params[0]] = counter
        lo, hi = self.held[op.lo], self.held[op.hi]
        given = f"{lo}, {hi}, {op.step}" if op.step != 1 else f"{lo}, {hi}" if lo != "0" else hi
        with self.text.block(f"for {counter} in range({given})"):
            self.region(region)
            self._carry(params, yields)

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
        """True if ``value`` may be written over ``param`` at once: it is computed element by element,
        and nothing else reads the old elements."""
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


def _lines(op: t.For) -> int:
    """About how many lines a loop takes; one within it that is long is a call."""
    return 2 + sum(_lines_of(inner) for inner in op.regions[0].ops)


def _lines_of(op: Op) -> int:
    if isinstance(op, t.For):
        return min(_lines(op), LINES_WORTH_A_FUNCTION)
    if isinstance(op, t.If):
        return 1 + sum(_lines_of(inner) for inner in op.regions[0].ops)
    types = [op.operands[0].type] if isinstance(op, t.Store) else [v.type for v in op.results]
    return sum(x.layout.registers for x in types if isinstance(x, RegisterType))

