"""Strips of codes as matrices in the dtype of a product, out of tiles of words.

Two neighbouring codes lie in the halves of a word, and become 16-bit floats without leaving it:

integers
    The code's bits, low in the float: as many times the dtype's smallest number as where they lie
    says, since where denormals end the next numbers go on in the same steps. So a multiply-add
    with a large power of two and the zero makes (code - zero) / ``unit`` of it, exactly, wherever
    its bits are among the lowest 8 (in f16, 11). The unit, a power of two, goes onto scales.
floats
    Sign, exponent and mantissa at the places that the dtype has them, times a power of two for the
    other bias: exact, denormals included.
tables
    The codes as 16-bit integers; values are read from memory.

What 16 bits do not hold (values of tables, zeros that are no whole numbers) is computed in f32, and
rounded once to the product's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import NOWHERE, Value
from tilewright.ir.dtypes import BF16, F16, F32, I32, I64, TABLE, DType
from tilewright.ir.errors import Location, UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View, decoded
from tilewright.ir.packing import HALF, STRIP, TILES, Packing
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.decode import table_values
from tilewright.passes.to_tile.lowbit.unpack import Move, constant, moves

I16 = TABLE["i16"]
LANES = 64  # rows of weights in a block: what a warp group's matrix instruction takes
MANTISSA = {F16: 10, BF16: 7}
BIAS = {F16: 15, BF16: 127}
# what a code is divided by after a multiplication of its bits, read as a float, with 2^bias
_STEPS = {dtype: 2.0 ** (bits - 1) for dtype, bits in MANTISSA.items()}


def product_dtype(dtype: DType, given: DType) -> DType:
    """What codes of ``dtype`` are multiplied in with activations in ``given``: that, unless its
    range is too small for them."""
    if given == F32 or dtype.is_int:
        return given
    return given if _in_range(dtype, given) else F32


@lru_cache(maxsize=1024)
def _in_range(dtype: DType, given: DType) -> bool:
    every = decoded(np.arange(1 << dtype.bits, dtype=np.uint8), dtype)
    values = np.asarray(every, np.float64)[np.isfinite(every)]
    held: Any = np.asarray(given.round(values), np.float64)
    return bool(np.array_equal(held, values) if dtype.is_float else np.isfinite(held).all())


def table_of(dtype: DType, bits: int) -> tuple[float, ...] | None:
    """What codes stand for that are neither integers nor floats, as a table in memory has it."""
    return None if dtype.is_int or dtype.is_float else table_values(dtype, bits, 0)


def require_tiles(packing: Packing, loc: Location = NOWHERE) -> None:
    """Raises UnsupportedError for weights that are packed for something else."""
    if packing.order != TILES or packing.lanes != LANES:
        raise UnsupportedError(
            f"weights are packed as {packing}; on a GPU they lie in {TILES} of {LANES} lanes "
            "(QuantizedTensor.with_layout repacks them)",
            loc,
        )


@dataclass(frozen=True)
class StripDecoder:
    """Makes matrices of ``made`` out of strips of codes of ``dtype``. ``zero`` is taken off all of
    them; ``zeros`` says what else is: "" nothing, "whole" numbers from 0 to 255, "float"."""

    packing: Packing
    dtype: DType
    zero: int
    zeros: str
    made: DType

    @property
    def narrow(self) -> DType:
        """The 16-bit floats that codes become at first."""
        return BF16 if self.made == F32 else self.made

    @property
    def table(self) -> bool:
        """Whether values come from a table in memory."""
        return not self.dtype.is_int and not self.dtype.is_float

    @property
    def unit(self) -> float:
        """What scales are to be multiplied by, and zeros divided: a strip is in such units."""
        if self.wide or not self.dtype.is_int:
            return 1.0
        return _STEPS[self.narrow]

    @cached_property
    def wide(self) -> bool:
        """Whether values are made in f32: tables, and zeros that 16 bits do not hold."""
        if self.table or self.zeros == "float" or (self.dtype.is_float and self.zeros):
            return True
        last = (1 << self.packing.bits) - 1
        return bool(self.zero) and (
            self.dtype.is_float or max(abs(self.zero), abs(last - self.zero)) > 255
        )

    def strip(
        self,
        b: TileBuilder,
        words: Mapping[int, Value],
        strip: int,
        zeros: Value | None,
        table: Value | None,
    ) -> Value:
        """One strip less its zeros, in units: in f32 (zeros, too) if values are wide, else in
        ``narrow``."""
        if self.table:
            assert table is not None
            codes = self._viewed(b, _moved(b, words, self._moves(strip)), I16)
            x = b(t.Gather, table, b.index(0), b(m.Cast, codes, dtype=I64, hint="code"), hint="w")
        elif self.dtype.is_float:
            x = self._float(b, words, strip)
        else:
            x = self._integer(b, words, strip, 0 if self.wide else self.zero)
        if not self.wide:
            return x if zeros is None else b(m.Sub, x, zeros, hint="w")
        x = x if self.table else b(m.Cast, x, dtype=F32, hint="w")
        if self.dtype.is_int:
            x = b(m.Mul, x, b.number(_STEPS[self.narrow], F32), hint="w")
        if self.zero:
            x = b(m.Sub, x, b.number(float(self.zero), F32), hint="w")
        return x if zeros is None else b(m.Sub, x, zeros, hint="w")

    def _moves(self, strip: int, places: Sequence[int] = ()) -> tuple[Move, ...]:
        """What brings the bits of a strip's first two codes to ``places`` of the halves of a word:
        all others lie as these do."""
        where = places or range(self.packing.bits)
        wanted = [(STRIP * strip + h, [HALF * h + at for at in where]) for h in range(2)]
        return moves(self.packing, wanted)

    def _viewed(self, b: TileBuilder, words: Value, dtype: DType) -> Value:
        assert isinstance(words.type, RegisterType)
        layout = Layout(2).local(words.type.shape[0], STRIP)
        return b(View, words, dtype=dtype, layout=layout, hint="w")

    def _float(self, b: TileBuilder, words: Mapping[int, Value], strip: int) -> Value:
        low = MANTISSA[self.narrow] - self.dtype.mantissa
        places = [*range(low, low + self.packing.bits - 1), HALF - 1]
        x = self._viewed(b, _moved(b, words, self._moves(strip, places)), self.narrow)
        factor = 2.0 ** (BIAS[self.narrow] - ((1 << (self.dtype.exponent - 1)) - 1))
        return x if factor == 1 else b(m.Mul, x, b.number(factor, self.narrow), hint="w")

    def _integer(self, b: TileBuilder, words: Mapping[int, Value], strip: int, zero: int) -> Value:
        """(code - zero) / ``_STEPS``; the code's bits stay where they are in the word, or in its
        halves' upper bytes, if a smaller factor makes the same of them there."""
        narrow = self.narrow
        room = MANTISSA[narrow] + 1 - self.packing.bits
        found = [self._moves(strip, range(at, at + self.packing.bits)) for at in range(room + 1)]
        at = min(range(room + 1), key=lambda at: sum(map(_work, found[at])))
        x = self._viewed(b, _moved(b, words, found[at]), narrow)
        factor = b.number(2.0 ** (BIAS[narrow] - at), narrow)
        less = b.number(-zero / _STEPS[narrow], narrow)
        return b(m.Fma, x, factor, less, hint="w")


def _work(move: Move) -> float:
    """What a move costs beside its mask: a shift by a byte serves several codes."""
    return 0.0 if move.shift == 0 else 0.5 if abs(move.shift) == HALF // 2 else 1.0


def _moved(b: TileBuilder, words: Mapping[int, Value], wanted: Sequence[Move]) -> Value:
    """Words of the bits that the moves bring."""
    out: Value | None = None
    for move in wanted:
        part = words[move.word]
        if move.shift:
            cls = m.ShiftRightSigned if move.shift > 0 else m.ShiftLeft
            part = b(cls, part, b.number(abs(move.shift), I32), hint="moved")
        part = b(m.BitAnd, part, constant(b, move.mask), hint="part")
        out = part if out is None else b(m.BitOr, part, out, hint="codes")
    assert out is not None, "a code has at least one bit"
    return out
