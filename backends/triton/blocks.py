"""Positions and tiles in turn, as Triton knows most about them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tilewright.backends.numba.text import PythonText
from tilewright.backends.triton.pointwise import dtype_name
from tilewright.backends.triton.words import atom, is_literal
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.matrix_units import GROUP_UNIT, UNITS
from tilewright.ir.types import RegisterType

LEAST = UNITS[GROUP_UNIT].k  # rows of a right side that matrix units take


class BlockOps:
    """What of a program's writer concerns positions and whole tiles; ``emit.py`` has the rest."""

    values: dict[Value, Any]
    made: dict[Value, Op]
    text: PythonText
    graph: Graph

    def _pointwise(self, op: Op) -> str:
        raise NotImplementedError

    def _math_div(self, op: Any) -> str:
        return (
            f"{atom(self.values[op.lhs])} // {self.values[op.rhs]}"
            if self._counts(op)
            else self._pointwise(op)
        )

    def _math_mod(self, op: Any) -> str:
        return (
            f"{atom(self.values[op.lhs])} % {self.values[op.rhs]}"
            if self._counts(op)
            else self._pointwise(op)
        )

    def _counts(self, op: Any) -> bool:
        """True for a position in a tile by a number: never negative, and Triton then sees which
        neighbours lie side by side in memory."""
        below = self.made.get(op.lhs)
        while isinstance(below, m.Cast):
            below = self.made.get(below.x)
        by = self.values[op.rhs]
        return isinstance(below, t.Coordinate) and is_literal(by) and not str(by).startswith("-")

    def _tile_interleave(self, op: t.Interleave) -> str:
        type_ = op.result.type
        assert isinstance(type_, RegisterType)
        count = len(op.parts)
        text = _joined([str(self.values[v]) for v in op.parts])
        if count == 1:
            return text
        bits = count.bit_length() - 1
        if op.dim == 0:
            order = ", ".join(map(str, (0, *range(2, 2 + bits), 1)))
            text = f"tl.permute({text}, ({order}))"
        return f"tl.reshape({text}, {type_.shape})"

    def _in_turns(self, op: t.Product) -> list[Any]:
        """The tiles whose rows a product's right side has in turn, if a product with each of them
        is what units take: so its operands come in their layout from the words in memory, by
        themselves, and need not be put together in shared memory first."""
        together = self._together(op)
        if together is None or not self._all_in_turns:
            return [self.values[op.b]]
        cast, parts = self.made.get(op.b), [self.values[part] for part in together.parts]
        if not isinstance(cast, m.Cast):
            return parts
        names = [self.text.name(part.hint) for part in together.parts]
        for name, part in zip(names, parts, strict=True):
            self.text.line(f"{name} = {atom(part)}.to({dtype_name(cast.dtype)})")
        return names

    def _together(self, op: t.Product) -> t.Interleave | None:
        """What puts the right side of a product together from tiles in turn."""
        made = self.made.get(op.b)
        if isinstance(made, m.Cast):
            made = self.made.get(made.x)
        return made if isinstance(made, t.Interleave) else None

    @cached_property
    def _all_in_turns(self) -> bool:
        """Whether all products of tiles in turn can be made so: with just some of them kernels were
        slower than with none (H100: 0.29 ms for 0.21; bench/results/h100/)."""
        products = [op for op in self.graph.body.walk() if isinstance(op, t.Product)]
        found = [op for op in map(self._together, products) if op is not None]
        return all(op.dim == 0 and _rows(op.parts[0]) >= LEAST for op in found)

    def _planes(self, x: Value, count: int) -> list[str]:
        """Every ``count``-th column of a tile from the first, the second, … on."""
        type_ = x.type
        assert isinstance(type_, RegisterType)
        rows, columns = type_.shape
        bits = count.bit_length() - 1
        shape = rows, columns // count, *(2,) * bits
        planes = [f"tl.reshape({self.values[x]}, {shape})"]
        for _ in range(bits):  # the last dimension is the lowest bit of a plane's number
            split: list[tuple[str, str]] = []
            for plane in planes:
                low, high = self.text.name(x.hint), self.text.name(x.hint)
                self.text.line(f"{low}, {high} = tl.split({plane})")
                split.append((low, high))
            planes = [low for low, _ in split] + [high for _, high in split]
        return planes


def _rows(tile: Value) -> int:
    assert isinstance(tile.type, RegisterType)
    return tile.type.shape[0]


def _joined(parts: list[str]) -> str:
    """Tiles along new last dimensions of two each, the number of a tile their index."""
    if len(parts) == 1:
        return parts[0]
    return f"tl.join({_joined(parts[::2])}, {_joined(parts[1::2])})"
