"""How many instructions the operations that make matrices out of codes become on a GPU."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.packing import HALF, STRIP, TILE_WORDS
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, RegisterType
from tilewright.passes.canonicalise import share
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES, StripDecoder

TILE = Layout(2).local(LANES, TILE_WORDS)


def strip_operations(way: StripDecoder, strips: int) -> tuple[Op, ...]:
    """The operations that make so many strips of a chunk; of the same one twice only one."""
    b = TileBuilder()
    words = {at: b.filled(at, I32, TILE) for at in range(0, way.packing.words, TILE_WORDS)}
    table = Value(BufferType((Size.of(1 << way.packing.bits),), F32, 0), "table")
    for strip in range(strips):
        made = way.strip(b, words, strip, None, table if way.table else None)
        if way.wide and way.made != F32:
            b(m.Cast, made, dtype=way.made)
    return share(Graph("tile", "chunk", (), Region((), tuple(b.top.ops)))).body.ops


def gpu_instructions(op: Op) -> int:
    """Instructions of a lane for the 16 words of a tile, or their 32 codes: two numbers of 16 bits
    are computed with at once, and a mask and what follows it are one logical instruction of three
    operands."""
    if isinstance(op, m.Const | View | m.BitOr | m.BitXor):
        return 0
    type_ = op.result.type
    assert isinstance(type_, RegisterType)
    if isinstance(op, t.Gather):
        return 2 * STRIP  # an address, and the load
    if isinstance(op, m.Cast) and type_.dtype.bits == 64:
        return STRIP
    return TILE_WORDS if type_.layout == TILE or type_.dtype.bits == HALF else STRIP
