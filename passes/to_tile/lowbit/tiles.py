"""Register tiles of a kernel with packed weights: rows in registers, weights' rows on lanes."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BF16, F16, F32, I32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.emitter import TileBuilder


@dataclass(frozen=True)
class Place:
    """Where a register tile lies: rows from ``row`` (clamped to ``total``), and the blocks of
    weights of its vectors; ``ahead``: blocks that will be read next, if that is known."""

    row: Value
    total: Value
    blocks: tuple[Value, ...]
    ahead: tuple[Value, ...] = ()


@dataclass(frozen=True)
class TileShapes:
    """Layouts for ``rows`` rows and ``lanes`` lanes."""

    rows: int
    lanes: int

    @property
    def sums(self) -> Layout:
        """[rows, lanes]"""
        return Layout(2).local(self.rows, 1).spatial(1, self.lanes)

    @property
    def column(self) -> Layout:
        """[rows, 1], the same on all lanes."""
        return Layout(2).local(self.rows, 1).replicate(self.lanes)

    @property
    def vector(self) -> Layout:
        """[1, lanes]"""
        return Layout(2).spatial(1, self.lanes)

    @property
    def column_bytes(self) -> Layout:
        """[rows, 1, 4], the same on all lanes."""
        return Layout(3).local(self.rows, 1, 1).replicate(self.lanes).local(1, 1, 4)

    @property
    def vector_bytes(self) -> Layout:
        """[1, lanes, 4]"""
        return Layout(3).spatial(1, self.lanes, 1).local(1, 1, 4)


def load_column(
    b: TileBuilder, shapes: TileShapes, memory: Value, place: Place, at: Value
) -> Value:
    """[rows, 1] of memory [rows, columns] at a column."""
    bounds = [(0, "clamp", place.total)] if shapes.rows > 1 else []
    dims = (0, -1)
    return b.load(memory, [place.row, at], dims, shapes.column, bounds, hint="x")


def load_vector(
    b: TileBuilder, shapes: TileShapes, memory: Value, block: Value, at: Value
) -> Value:
    """[1, lanes] of memory [blocks, numbers * lanes], number ``at``."""
    column = b.mul(at, shapes.lanes)
    return b.load(memory, [block, column], (-1, 1), shapes.vector, hint="w")


def as_f32(b: TileBuilder, x: Value, dtype: DType, encoded: DType) -> Value:
    """Numbers beside codes as f32; bytes hold what ``encoded`` says."""
    if dtype == F32:
        return x
    if dtype in (F16, BF16) or encoded == F32:
        return b(m.Cast, x, dtype=F32, hint=x.hint)
    wide = b(m.Cast, x, dtype=I32, hint=x.hint)
    if encoded.name == "e8m0":
        moved = b(m.ShiftLeft, wide, b.number(23, I32), hint=x.hint)
        lowest = b.number(1 << 22, I32)  # 2**-127, which is denormal
        bits = b(m.Max, moved, lowest, hint=x.hint)
        return _or_nan(b, b(m.Compare, wide, b.number(255, I32), relation="eq"), _view(b, bits))
    if encoded.name == "f8e4m3":
        sign = b(m.BitAnd, b(m.ShiftLeft, wide, b.number(24, I32)), b.number(-(1 << 31), I32))
        rest = b(m.BitAnd, b(m.ShiftLeft, wide, b.number(20, I32)), b.number(0x7F << 20, I32))
        small = _view(b, b(m.BitOr, sign, rest, hint=x.hint))
        value = b(m.Mul, small, b.number(2.0**120, F32), hint=x.hint)
        return _or_nan(b, b(m.Compare, rest, b.number(0x7F << 20, I32), relation="eq"), value)
    raise UnsupportedError(f"scales in {encoded}")


def _view(b: TileBuilder, bits: Value) -> Value:
    assert isinstance(bits.type, RegisterType)
    return b(View, bits, dtype=F32, layout=bits.type.layout, hint=bits.hint)


def _or_nan(b: TileBuilder, condition: Value, value: Value) -> Value:
    """NaN where the condition holds: the code that means it would give a number."""
    return b(m.Select, condition, b.number(float("nan"), F32), value, hint=value.hint)
