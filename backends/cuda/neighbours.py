"""What is known of the integers of a program: multiples of a width, and neighbours in memory."""

from __future__ import annotations

from tilewright.backends.cuda.lines import LineOps
from tilewright.backends.cuda.tiles import Buffer
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.types import RegisterType


class NeighbourOps(LineOps):
    """What of a program's writer concerns accesses of several elements at once."""

    def divides(self, value: Value, width: int, dim: int | None = None) -> bool:
        """True for a number known to be a multiple of ``width``; with a dimension, for a tile that
        has multiples of it at positions along that which are multiples of it."""
        op = self.made.get(value)
        if isinstance(op, m.Const):
            return int(op.value) % width == 0
        if isinstance(op, t.Coordinate):
            return bool(op.dim == dim)
        if isinstance(op, t.StrideOf):
            held = self.values[op.buffer]
            assert isinstance(held, Buffer)
            whole = 16 * 8 // held.dtype.bits % width == 0
            if not whole or not held.lines or op.dim == held.unit:
                return False
            self.wide.add(held.number)
            return True
        if isinstance(op, m.Mul):
            return any(self.divides(v, width, dim) for v in op.operands)
        if isinstance(op, m.Add | m.Sub | m.Min | m.Max | m.Mod):
            return all(self.divides(v, width, dim) for v in op.operands)
        if isinstance(op, m.Fma):
            product = any(self.divides(v, width, dim) for v in op.operands[:2])
            return product and self.divides(op.operands[2], width, dim)
        if isinstance(op, t.Splat | m.Cast):
            return self.divides(op.x, width, dim)
        if isinstance(op, m.Select):  # a negative offset is never used
            other = self.made.get(op.rhs)
            gap = isinstance(other, m.Const) and other.value == -1
            return self.divides(op.lhs, width, dim) and (gap or self.divides(op.rhs, width, dim))
        loop = self.counters.get(value)
        return loop is not None and loop.step % width == 0 and self.divides(loop.lo, width)

    def neighbours(self, op: t.Gather) -> int:
        """How many neighbouring registers of a gather are neighbours in memory, too, of 32 bits."""
        held = self.values[op.source]
        assert isinstance(held, Buffer) and isinstance(op.result.type, RegisterType)
        digits = op.result.type.layout.digits()[0]
        if not held.lines or held.dtype.bits != 32 or not digits or digits[0][1] != 1:
            return 1
        dim, _, width = digits[0]
        width = min(width, 4)
        while width > 1 and not (
            self.divides(op.offset, width)
            and self._step(op.offsets, dim, width) == 1
            and self.divides(op.offsets, width, dim)
        ):
            width //= 2
        return self.at_once(held, width)

    def _step(self, value: Value, dim: int, width: int) -> int | None:
        """How a tile grows along a dimension within groups of ``width`` positions, the first a
        multiple of it; None if that is not known."""
        op = self.made.get(value)
        if isinstance(op, t.Coordinate):
            return int(op.dim == dim)
        if isinstance(op, t.Splat | m.Const):
            return 0
        if isinstance(op, m.Cast):
            return self._step(op.x, dim, width)
        if not isinstance(op, m.Add | m.Mul | m.Mod | m.Div | m.Min | m.Max):
            return None
        first, second = (self._step(v, dim, width) for v in op.operands)
        if first is None or second is None:
            return None
        if isinstance(op, m.Add):
            return first + second
        if isinstance(op, m.Mul) and (first or second):
            by = self._number(op.rhs if second == 0 else op.lhs)
            return None if by is None or (first and second) else (first or second) * by
        if first == second == 0:
            return 0
        by = self._number(op.rhs) if isinstance(op, m.Mod | m.Div) else None
        whole = by is not None and by % width == 0 and self.divides(op.operands[0], width, dim)
        if not whole or first not in (0, 1):
            return None
        return first if isinstance(op, m.Mod) else 0

    def _number(self, value: Value) -> int | None:
        """A number that is the same everywhere: a constant, or the stride of a unit dimension."""
        op = self.made.get(value)
        if isinstance(op, m.Const):
            return int(op.value)
        if isinstance(op, t.Splat | m.Cast):
            return self._number(op.x)
        if isinstance(op, t.StrideOf):
            held = self.values[op.buffer]
            assert isinstance(held, Buffer)
            return 1 if op.dim == held.unit else None
        return None
