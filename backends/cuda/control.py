"""Loops and conditions of a program of threads as C++, and what loops carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilewright.backends.cuda.text import atom
from tilewright.backends.cuda.tiles import Tile, Writer
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Region, Value
from tilewright.ir.types import IndexType


class ControlOps(Writer):
    """What of a program's writer concerns control flow."""

    def region(self, region: Region) -> None:
        """Writes the operations of a region."""
        raise NotImplementedError

    def _tile_for(self, op: t.For) -> None:
        region = op.regions[0]
        counter, *params = region.params
        for init, param in zip(op.inits, params, strict=True):
            self._carried(init, param)
        self.before_loop(region)
        at = self.text.name(counter.hint)
        lo, hi = (self.index(v) for v in op.operands[:2])
        self.values[counter] = at
        walk = f"long long {at} = {lo}; {at} < {hi}; {at} += {op.step}"
        with self.text.block(f"for ({walk})"), self._anew():
            self.region(region)
            self._next(params, region.yields)
        for result, param in zip(op.results, params, strict=True):
            self.values[result] = self.values[param]

    @contextmanager
    def _anew(self) -> Iterator[None]:
        """A loop's body, with names of its own for what depends on the thread only, if the program
        is short of registers."""
        if not self.graph.attrs.get("short"):
            yield
            return
        outer, self.anew, first = self.anew, {}, len(self.text.lines)
        yield
        margin = "  " * self.text.depth
        lines = [f"{margin}const int {new} = tw::anew({old});" for old, new in self.anew.items()]
        self.text.lines[first:first] = lines
        self.anew = outer

    def _carried(self, init: Value, param: Value) -> None:
        """A variable for what a loop carries, with its first value."""
        if isinstance(init.type, IndexType):
            self.values[param] = self.bind("long long", param.hint, self.index(init))
            return
        x = self.tile(init)
        out = Tile(self.text.name(param.hint), x.dtype, x.layout, False)
        self.values[param] = out
        self.text.line(f"{self.declaration(out)};")
        self.assign(out, x)

    def _next(self, params: list[Value], yields: tuple[Value, ...]) -> None:
        """What a loop carries on; values that are carried variables themselves are read first."""
        held = {
            self.values[p] if isinstance(p.type, IndexType) else self.values[p].name for p in params
        }
        moves: list[tuple[Value, Any]] = []
        for param, value in zip(params, yields, strict=True):
            if isinstance(param.type, IndexType):
                text = self.index(value)
                if text in held and text != self.values[param]:
                    text = self.bind("const long long", "before", text)
                moves.append((param, text))
                continue
            x = self.tile(value)
            if x.name in held and x.name != self.values[param].name:
                copy = Tile(self.text.name("before"), x.dtype, x.layout, False)
                self.text.line(f"{self.declaration(copy)};")
                self.assign(copy, x)
                x = copy
            moves.append((param, x))
        for param, x in moves:
            if isinstance(param.type, IndexType):
                if x != self.values[param]:
                    self.text.line(f"{self.values[param]} = {x};")
            elif x.name != self.values[param].name:
                self.assign(self.values[param], x)

    def _tile_if(self, op: t.If) -> None:
        lo, hi = (atom(self.index(v)) for v in op.operands)
        with self.text.block(f"if ({lo} < {hi})"):
            self.region(op.regions[0])
