"""Codes as f32, one in each lane: by a table in registers, or from their bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I32, DType
from tilewright.ir.ops_lowbit import Lookup, View, decoded
from tilewright.ir.packing import PAIR, Packing
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.cost import total_slots
from tilewright.passes.to_tile.lowbit.halves import HALF, HalfTable, half_table
from tilewright.passes.to_tile.lowbit.unpack import (
    chunk_words,
    code_moves,
    constant,
    emit_moves,
)

MAGIC = 0x4B000000  # the bits of 2**23, whose mantissa counts in ones


@dataclass(frozen=True)
class Decoder:
    """Gives code number ``code`` of a chunk, less the constant zero, as a tile of f32.

    ``way`` is ``table``, ``half``, ``integer``, ``float`` or ``signed``; ``halves`` is the table of
    the second.
    """

    way: str
    packing: Packing
    dtype: DType
    zero: int
    halves: HalfTable | None = None

    def emit(self, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
        return _WAYS[self.way](self, b, words, code)

    def instructions(self, target: Target) -> int:
        """Of a chunk."""
        b = TileBuilder()
        words = chunk_words(b, self.packing)
        for code in range(self.packing.chunk):
            self.emit(b, words, code)
        return total_slots(b, target)


@lru_cache(maxsize=1024)
def decoder(packing: Packing, dtype: DType, zero: int, target: Target) -> Decoder:
    """The way with the fewest instructions for a dtype on a target."""
    signed = dtype.is_float and dtype.bits == 1 + dtype.exponent + dtype.mantissa
    ways = ["integer"] if dtype.is_int else ["float", "signed"] if signed else []
    if not ways or target.lanes > 4:
        ways.append("table")
    halves = half_table(packing, dtype, zero, target)
    if halves is not None:
        ways.append("half")
    found = [Decoder(way, packing, dtype, zero, halves) for way in ways]
    return min(found, key=lambda d: d.instructions(target))


@lru_cache(maxsize=1024)
def table_values(dtype: DType, bits: int, zero: int) -> tuple[float, ...]:
    """What every code stands for."""
    codes = np.arange(1 << bits, dtype=np.uint8)
    return tuple(float(v) for v in decoded(codes, dtype) - zero)


def _by_table(d: Decoder, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
    loose = (1 << 32) - (1 << d.packing.bits)
    index = emit_moves(b, words, code_moves(d.packing, code), loose)
    values = table_values(d.dtype, d.packing.bits, d.zero)
    return b(Lookup, index, values=values, hint="w")


def _by_integer(d: Decoder, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
    """The code as the lowest bits of 2**23 + code, which is exact."""
    bits = emit_moves(b, words, code_moves(d.packing, code))
    bits = b(m.BitOr, bits, constant(b, MAGIC), hint="bits")
    large = b(View, bits, dtype=F32, layout=bits.type.layout, hint="large")  # type: ignore[union-attr]
    return b(m.Sub, large, b.number(float(2**23 + d.zero), F32), hint="w")


def _by_float(d: Decoder, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
    """Sign, exponent and mantissa at the places that f32 has them."""
    return _unbiased(d, b, emit_moves(b, words, code_moves(d.packing, code, _places(d))))


def _by_signed(d: Decoder, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
    """The same, where a code lies in one piece: first its sign gets to its place, then the rest is
    moved away from it, which fills the bits between with copies of it."""
    pieces = list(d.packing.pieces(code))
    if len(pieces) > 1:
        return _by_float(d, b, words, code)
    (piece,) = pieces
    bits, up = words[piece.word], 32 - piece.at - piece.width
    if up:
        bits = b(m.ShiftLeft, bits, b.number(up, I32), hint="moved")
    down = 8 - d.dtype.exponent
    bits = b(m.ShiftRightSigned, bits, b.number(down, I32), hint="moved")
    mask = sum(1 << place for place in _places(d))
    return _unbiased(d, b, b(m.BitAnd, bits, constant(b, mask), hint="bits"))


def _by_half(d: Decoder, b: TileBuilder, words: Sequence[Value], code: int) -> Value:
    """One half of a word of two bf16, which the neighbouring code shares."""
    assert d.halves is not None
    both = d.halves.emit(b, words, code // PAIR)
    if code % PAIR:
        bits = b(m.BitAnd, both, constant(b, 0xFFFF0000), hint="w")
    else:
        bits = b(m.ShiftLeft, both, b.number(HALF, I32), hint="w")
    return b(View, bits, dtype=F32, layout=bits.type.layout, hint="w")  # type: ignore[union-attr]


def _places(d: Decoder) -> list[int]:
    """The bits of an f32 that a code's bits become, lowest first."""
    mantissa, width = d.dtype.mantissa, d.packing.bits - 1
    return [*range(23 - mantissa, 23 - mantissa + width), 31]


def _unbiased(d: Decoder, b: TileBuilder, bits: Value) -> Value:
    """The exponent's other bias is a factor. Denormals come out right, because a multiplication
    makes them."""
    small = b(View, bits, dtype=F32, layout=bits.type.layout, hint="small")  # type: ignore[union-attr]
    bias = (1 << (d.dtype.exponent - 1)) - 1
    large = b(m.Mul, small, b.number(2.0 ** (127 - bias), F32), hint="w")
    return b(m.Sub, large, b.number(float(d.zero), F32), hint="w") if d.zero else large


_WAYS: dict[str, Callable[[Decoder, TileBuilder, Sequence[Value], int], Value]] = {
    "table": _by_table,
    "integer": _by_integer,
    "half": _by_half,
    "float": _by_float,
    "signed": _by_signed,
}
