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

MANTISSA = 23  # bits of f32
BIAS = 127  # of its exponent
MOST_PLACES = 2  # of codes in a mantissa


@dataclass(frozen=True)
class Decoder:
    """Gives code number ``code`` of a chunk, less the constant zero, as a tile of f32.

    ``way`` is ``table``, ``half``, ``integer``, ``float`` or ``signed``; ``halves`` is the table of
    the second. ``whole``: tiles of zeros, if there are any, are whole numbers from 0 to 255.
    """

    way: str
    packing: Packing
    dtype: DType
    zero: int
    halves: HalfTable | None = None
    whole: bool = False

    def emit(
        self, b: TileBuilder, words: Sequence[Value], code: int, zeros: Value | None = None
    ) -> Value:
        """``zeros`` [1, lanes] f32: subtracted, too."""
        if self.way == "integer":
            return _by_integer(self, b, words, code, zeros)
        w = _WAYS[self.way](self, b, words, code)
        return w if zeros is None else b(m.Sub, w, zeros, hint="w")

    def instructions(self, target: Target) -> int:
        """Of a chunk, with ``whole`` zeros if it has them."""
        b = TileBuilder()
        words = chunk_words(b, self.packing)
        zeros = b.filled(0.0, F32, words[0].type.layout) if self.whole else None  # type: ignore[union-attr]
        for code in range(self.packing.chunk):
            self.emit(b, words, code, zeros)
        return total_slots(b, target)


@lru_cache(maxsize=1024)
def decoder(
    packing: Packing, dtype: DType, zero: int, target: Target, whole: bool = False
) -> Decoder:
    """The way with the fewest instructions for a dtype on a target; ``whole``: with a tile of
    zeros that are whole numbers."""
    signed = dtype.is_float and dtype.bits == 1 + dtype.exponent + dtype.mantissa
    ways = ["integer"] if dtype.is_int else ["float", "signed"] if signed else []
    if not ways or target.named:
        ways.append("table")
    halves = half_table(packing, dtype, zero, target)
    if halves is not None:
        ways.append("half")
    found = [Decoder(way, packing, dtype, zero, halves, whole) for way in ways]
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


def _by_integer(
    d: Decoder, b: TileBuilder, words: Sequence[Value], code: int, zeros: Value | None
) -> Value:
    """The code's bits in the mantissa of a power of two, in which a bit at place p counts as one
    the power is 2**(23 - p): where the code lies, if that is low enough. All of it is exact."""
    place = _place(d.packing, code)
    places = [place + bit for bit in range(d.packing.bits)]
    bits = emit_moves(b, words, code_moves(d.packing, code, places))
    bits = b(m.BitOr, bits, constant(b, BIAS + MANTISSA - place << MANTISSA), hint="bits")
    large = b(View, bits, dtype=F32, layout=bits.type.layout, hint="large")  # type: ignore[union-attr]
    lost = b.number(float(2 ** (MANTISSA - place) + d.zero), F32)
    if zeros is None:
        return b(m.Sub, large, lost, hint="w")
    if d.whole:  # the sum is exact, and the same for all codes at this place
        return b(m.Sub, large, b(m.Add, zeros, lost, hint="lost"), hint="w")
    return b(m.Sub, b(m.Sub, large, lost, hint="w"), zeros, hint="w")


def _place(packing: Packing, code: int) -> int:
    """Where in the mantissa a code's lowest bit goes."""
    pieces = list(packing.pieces(code))
    return pieces[0].at % _stride(packing) if len(pieces) == 1 else 0


@lru_cache(maxsize=1024)
def _stride(packing: Packing) -> int:
    """Codes move down by multiples of it: by few different ones, since each is a shift, to no more
    than two places, since each needs constants in registers."""
    pieces = [list(packing.pieces(code)) for code in range(packing.chunk)]
    found = [one[0].at for one in pieces if len(one) == 1]
    strides = range(1, MANTISSA + 2 - packing.bits)
    few = [s for s in strides if len({at % s for at in found}) <= MOST_PLACES]
    return min(few, key=lambda s: (len({at // s for at in found}), s))


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
    return [*range(MANTISSA - mantissa, MANTISSA - mantissa + width), 31]


def _unbiased(d: Decoder, b: TileBuilder, bits: Value) -> Value:
    """The exponent's other bias is a factor. Denormals come out right, because a multiplication
    makes them."""
    small = b(View, bits, dtype=F32, layout=bits.type.layout, hint="small")  # type: ignore[union-attr]
    bias = (1 << (d.dtype.exponent - 1)) - 1
    large = b(m.Mul, small, b.number(2.0 ** (BIAS - bias), F32), hint="w")
    return b(m.Sub, large, b.number(float(d.zero), F32), hint="w") if d.zero else large


_WAYS: dict[str, Callable[[Decoder, TileBuilder, Sequence[Value], int], Value]] = {
    "table": _by_table,
    "half": _by_half,
    "float": _by_float,
    "signed": _by_signed,
}
