"""Positions and tiles in turn, as Triton knows most about them."""

from __future__ import annotations

from typing import Any

from tilewright.backends.triton.words import atom, is_literal
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.types import RegisterType


class BlockOps:
    """What of a program's writer concerns positions and whole tiles; ``emit.py`` has the rest."""

    values: dict[Value, Any]
    made: dict[Value, Op]

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


def _joined(parts: list[str]) -> str:
    """Tiles along new last dimensions of two each, the number of a tile their index."""
    if len(parts) == 1:
        return parts[0]
    return f"tl.join({_joined(parts[::2])}, {_joined(parts[1::2])})"
