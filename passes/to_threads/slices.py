"""What of a loop's body says where a block lies, so that it can be computed for a later turn.

A block may be copied ahead of its turn if its place follows from the loop's counter and from what
does not change in the loop: integers, tiles of positions, and tables in memory (pages), but nothing
that the loop carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Region, Value
from tilewright.ir.types import SharedType
from tilewright.passes.to_tile.emitter import TileBuilder


@dataclass(frozen=True)
class Turns:
    """A loop's counter (of the program on whole blocks), and where it begins, ends and steps."""

    counter: Value
    lo: Value
    hi: Value
    step: int

    def last(self, b: TileBuilder) -> Value:
        """The counter in the last turn of a loop that has one."""
        before = b.sub(self.hi, 1)
        if self.step == 1:
            return before
        return b.add(self.lo, b.mul(b.div(b.sub(before, self.lo), self.step), self.step))


def slice_of(region: Region, wanted: Sequence[Value]) -> tuple[Op, ...] | None:
    """The operations that make values in a loop's body, in order; None if the loop's carried values
    take part, or operations that may not be repeated."""
    made = {v: op for op in region.ops for v in op.results}
    carried = set(region.params[1:])
    needed: set[Op] = set()
    rest = list(wanted)
    while rest:
        value = rest.pop()
        if value in carried:
            return None
        op = made.get(value)
        if op is None or op in needed:
            continue
        if not _repeatable(op):
            return None
        needed.add(op)
        rest.extend(op.operands)
    return tuple(op for op in region.ops if op in needed)


def _repeatable(op: Op) -> bool:
    """True for integers, tiles of positions and what is looked up in memory."""
    if isinstance(op, t.Gather | t.Load | t.Read):
        return not isinstance(op.operands[0].type, SharedType)
    plain = "pointwise" in op.traits or "pure" in op.traits or isinstance(op, m.Const)
    return plain and not op.regions and not isinstance(op, t.Product | t.Reduce)
