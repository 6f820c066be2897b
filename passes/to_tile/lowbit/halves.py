"""Codes as bf16, two in a lane's word, by a table in registers; exact where their values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir.bit_patterns import from_bits
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, DType
from tilewright.ir.ops_lowbit import LookupHalves, bf16_bits, decoded
from tilewright.ir.packing import PAIR, Packing
from tilewright.ir.target import Target
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.unpack import Move, emit_moves, moves

LARGEST_TABLE = 64  # halves that one instruction chooses from
HALF = 16


@dataclass(frozen=True)
class HalfTable:
    """``values`` of all codes, or with ``signed`` of those without their highest bit, which is the
    sign."""

    packing: Packing
    values: tuple[float, ...]
    signed: bool

    def emit(self, b: TileBuilder, words: Sequence[Value], pair: int) -> Value:
        """Pair number ``pair`` of a chunk as words of two bf16."""
        bits = self.packing.bits
        spare = (1 << HALF) - len(self.values)
        at = [{t: HALF * h + t for t in range(bits)} for h in range(PAIR)]
        index = emit_moves(b, words, self._moves(pair, at), spare << HALF | spare)
        found = b(LookupHalves, index, values=self.values, hint="w")
        if not self.signed:
            return found
        top = [{bits - 1: HALF * h + HALF - 1} for h in range(PAIR)]
        sign = emit_moves(b, words, self._moves(pair, top))
        return b(m.BitOr, found, sign, hint="w")

    def _moves(self, pair: int, places: Sequence[dict[int, int]]) -> tuple[Move, ...]:
        return moves(self.packing, [(PAIR * pair + h, p) for h, p in enumerate(places)])


@lru_cache(maxsize=1024)
def half_table(packing: Packing, dtype: DType, zero: int, target: Target) -> HalfTable | None:
    """The table of a dtype's values less a constant zero; None if it is no table of a register or
    two, values are finer than bf16's, or the target has no such instruction."""
    if target.named != "avx512":
        return None
    every = decoded(np.arange(1 << packing.bits, dtype=np.uint8), dtype) - zero
    kept = from_bits(bf16_bits(every).astype(np.uint64), BF16).astype(np.float64)
    if not np.isfinite(every).all() or (kept != every).any():
        return None
    if len(every) <= LARGEST_TABLE:
        return HalfTable(packing, tuple(map(float, every)), False)
    low, high = np.split(every, 2)
    if len(low) > LARGEST_TABLE or (low != -high).any():
        return None
    return HalfTable(packing, tuple(map(float, low)), True)
