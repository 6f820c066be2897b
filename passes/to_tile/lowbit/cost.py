"""How many instructions the operations that take codes apart become on a target."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Op, Region
from tilewright.ir.ops_lowbit import Lookup, View
from tilewright.ir.target import Target
from tilewright.passes.canonicalise import share
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.unpack import PART


def kind(op: Op) -> str:
    """``shift``, ``mask`` or ``arithmetic``."""
    if isinstance(op, m.ShiftLeft | m.ShiftRight | m.ShiftRightSigned):
        return "shift"
    return "mask" if isinstance(op, m.BitAnd | m.BitOr | m.BitXor) else "arithmetic"


def slots(op: Op, target: Target) -> int:
    """Instructions that an operation takes."""
    if isinstance(op, View | m.Const):
        return 0
    if isinstance(op, m.BitAnd) and target.named == "avx512":
        # the mask of a part that is combined: one ternary instruction does both
        return 0 if op.result.hint == PART else 1
    if isinstance(op, Lookup):
        tables = max(1, len(op.values) // target.lanes)
        wide = 2 if target.named == "avx512" else 1  # registers that one permutation chooses from
        permutations = max(1, tables // wide)
        return permutations + 3 * (permutations - 1)  # shift, test and blend
    return 1


def total_slots(b: TileBuilder, target: Target) -> int:
    """Instructions of what was built; of the same operation twice only one."""
    body = Region((), tuple(b.top.ops))
    return sum(slots(op, target) for op in share(Graph("tile", "chunk", (), body)).body.ops)


def dot_slots(bits: int, target: Target) -> int:
    """Instructions of one product of quads of bytes."""
    if target.int8_dot == "vnni":
        return 1
    return 3 if bits < 8 else 6
