"""Codes taken out of words: what the written operations give, on words of every packing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.ir.packings import EVERY
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I32, TABLE, DType, table_dtype
from tilewright.ir.evaluate import Arithmetic
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import Lookup, decoded
from tilewright.ir.packing import ORDERS, Packing
from tilewright.ir.target import named_target
from tilewright.ir.types import RegisterType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.lowbit.byte_codes import byte_codes
from tilewright.passes.to_tile.lowbit.decode import Decoder, decoder
from tilewright.passes.to_tile.lowbit.halves import half_table
from tilewright.passes.to_tile.lowbit.unpack import (
    code_moves,
    constant,
    emit_moves,
    quad_moves,
)

ROWS = 256
ROW = Layout(2).spatial(1, ROWS)
TARGETS = [named_target(name) for name in ("scalar", "x86-64-v3", "x86-64-v4", "znver4")]
UNEVEN = table_dtype("test_uneven", [-3.0, -1.0, 0.7, 7.1])
CODED = [
    *(d for d in TABLE.values() if d.bits <= 8 and d.kind in ("int", "uint")),
    *(d for d in TABLE.values() if d.bits <= 8 and d.is_float and d.name != "e8m0"),
    *(TABLE["nf4"], UNEVEN),
]


class Written:
    """Operations written in a row, and what they give on the words that were given."""

    def __init__(self, given: dict[Value, Any] | None = None) -> None:
        self.b = TileBuilder()
        self.made: dict[Value, Any] = dict(given or {})
        self.done = 0

    def value(self, wanted: Value) -> Any:
        """What was built for a value."""
        plain, ops = Arithmetic(exact=False), self.b.top.ops
        for op in ops[self.done :]:
            dtype = op.result.type.dtype  # type: ignore[union-attr]
            if isinstance(op, m.Const):
                self.made[op.result] = np.asarray(op.value, dtype.host)
            else:
                inputs = [self.made[v] for v in op.operands]
                self.made[op.result] = plain.settle(op.reference(*inputs), dtype)
        self.done = len(ops)
        return self.made[wanted]


class Chunk(Written):
    """A chunk of random codes for each of 256 rows, every code of up to 8 bits among them."""

    def __init__(self, packing: Packing) -> None:
        form = Packing(packing.order, packing.planes, 1, packing.chunk)
        rng = np.random.default_rng(packing.bits)
        every = rng.permutation(ROWS)[:, None] + rng.integers(0, 256, form.chunk)
        self.codes = every % (1 << form.bits)
        self.words = [Value(RegisterType(I32, ROW), f"w{i}") for i in range(form.words)]
        packed = form.pack(self.codes)[:, 0, :, 0]
        super().__init__({w: packed[None, :, i].copy() for i, w in enumerate(self.words)})

    def rows(self, wanted: Value) -> Any:
        """[256] of a tile that was built."""
        return np.broadcast_to(self.value(wanted), (1, ROWS))[0]


def bits(array: Any) -> Any:
    return np.ascontiguousarray(array).view(np.uint32).astype(np.int64)


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_quads_are_four_codes_in_four_bytes(packing: Packing) -> None:
    chunk = Chunk(packing)
    for quad in range(packing.chunk // 4):
        word = emit_moves(chunk.b, chunk.words, quad_moves(packing, quad))
        wanted = sum(chunk.codes[:, 4 * quad + i] << 8 * i for i in range(4))
        assert np.array_equal(bits(chunk.rows(word)), wanted)


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_single_codes_and_loose_bits(packing: Packing) -> None:
    """Without loose bits the word is the code; with them its lowest bits are, for no more work."""
    chunk, full = Chunk(packing), (1 << packing.bits) - 1
    for code in range(packing.chunk):
        moves = code_moves(packing, code)
        word = emit_moves(chunk.b, chunk.words, moves)
        before = len(chunk.b.top.ops)
        loose = emit_moves(chunk.b, chunk.words, moves, 0xFFFFFFFF ^ full)
        after = len(chunk.b.top.ops)
        assert np.array_equal(bits(chunk.rows(word)), chunk.codes[:, code])
        assert np.array_equal(bits(chunk.rows(loose)) & full, chunk.codes[:, code])
        if len(moves) == 1:
            assert after - before <= 2, "a shift by a constant is enough"


@pytest.mark.parametrize("packing", EVERY, ids=str)
def test_bits_go_where_they_are_wanted(packing: Packing) -> None:
    """Reversed, and spread over the word: every bit of a code at a place of its own."""
    chunk, width = Chunk(packing), packing.bits
    for places in (range(width)[::-1], [31 - 3 * i for i in range(width)]):
        for code in range(packing.chunk):
            word = emit_moves(chunk.b, chunk.words, code_moves(packing, code, places))
            wanted = sum((chunk.codes[:, code] >> i & 1) << p for i, p in enumerate(places))
            assert np.array_equal(bits(chunk.rows(word)), wanted)


def test_only_loose_bits_are_loose() -> None:
    """A bit that is neither wanted nor loose is cleared even if only one move is needed."""
    packing = Packing.quads(4, 1, 8)
    chunk = Chunk(packing)
    top, all_but_top = 0x80000000, 0xFFFFFFFF ^ 0x80000000
    for code in range(packing.chunk):
        word = emit_moves(chunk.b, chunk.words, code_moves(packing, code), top)
        assert np.array_equal(bits(chunk.rows(word)) & all_but_top, chunk.codes[:, code])


@pytest.mark.parametrize("number", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x0F0F0F0F])
def test_constants_are_patterns(number: int) -> None:
    written = Written()
    assert bits(written.value(constant(written.b, number))).tolist() == [number]


WIDE = named_target("x86-64-v4")


def ways(dtype: DType, packing: Packing, zero: int = 0) -> Sequence[str]:
    half = () if half_table(packing, dtype, zero, WIDE) is None else ("half",)
    if dtype.is_int:
        return ("integer", "table", *half)
    return ("float", "signed", "table", *half) if dtype.is_float else ("table", *half)


def forms(width: int) -> list[Packing]:
    """One of each order, and of the finest planes."""
    ones = Packing("quads", (1,) * width, 1, 1)
    made = [getattr(Packing, order)(width, 1, 1) for order in ORDERS]
    return list(dict.fromkeys([*made, ones]))


@pytest.mark.parametrize("dtype", [d for d in CODED if not d.is_float], ids=str)
def test_codes_less_tiles_of_zeros(dtype: DType) -> None:
    """A tile of zeros is subtracted, too, with one rounding if they are no whole numbers."""
    for packing in forms(dtype.bits):
        for way in ways(dtype, packing):
            for whole in (True, False):
                zeros = np.arange(ROWS, dtype="f4") + np.float32(0.0 if whole else 0.3)
                chunk = Chunk(packing)
                made = Decoder(way, packing, dtype, 0, half_table(packing, dtype, 0, WIDE), whole)
                for code in range(packing.chunk):
                    tile = Value(RegisterType(F32, ROW), "zeros")
                    chunk.made[tile] = zeros[None, :]
                    value = chunk.rows(made.emit(chunk.b, chunk.words, code, tile))
                    wanted = decoded(chunk.codes[:, code].astype(np.uint8), dtype) - zeros
                    assert np.array_equal(value, wanted.astype("f4"), equal_nan=True)


@pytest.mark.parametrize("dtype", CODED, ids=str)
def test_codes_as_numbers(dtype: DType) -> None:
    """Every way gives every code's value exactly, less a zero. Kernels take codes of infinities and
    NaN for numbers, which the float way shows; the table has them."""
    finite = np.isfinite(decoded(np.arange(1 << dtype.bits, dtype=np.uint8), dtype))
    for packing in forms(dtype.bits):
        for zero in (0, 3) if packing == forms(dtype.bits)[0] else (0,):
            for way in ways(dtype, packing, zero):
                chunk = Chunk(packing)
                halves = half_table(packing, dtype, zero, WIDE)
                made = Decoder(way, packing, dtype, zero, halves)
                for code in range(packing.chunk):
                    value = chunk.rows(made.emit(chunk.b, chunk.words, code))
                    here = chunk.codes[:, code].astype(np.uint8)
                    ok = finite[here] if way in ("float", "signed") else np.ones(ROWS, bool)
                    wanted = decoded(here, dtype) - zero
                    assert np.array_equal(value[ok], wanted[ok].astype("f4"), equal_nan=True)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_way_with_the_fewest_instructions_that_the_target_has(target: Any) -> None:
    names = ("u1", "u3", "i4", "u7", "f4e2m1", "f6e3m2", "nf4")
    for dtype in map(TABLE.__getitem__, names):
        for packing in forms(dtype.bits):
            chosen = decoder(packing, dtype, 0, target)
            known = ways(dtype, packing)
            assert chosen.way in known
            halves = half_table(packing, dtype, 0, target)
            least = min(
                Decoder(way, packing, dtype, 0, halves).instructions(target)
                for way in known
                if (target.lanes > 4 or way != "table" or dtype.kind == "table")
                and (halves is not None or way != "half")
            )
            assert chosen.instructions(target) == least
            b = TileBuilder()
            words = [b.filled(0, I32, ROW) for _ in range(packing.words)]
            chosen.emit(b, words, 0)
            if any(isinstance(op, Lookup) for op in b.top.ops):
                assert target.lanes > 4 or dtype.kind == "table"


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_bytes_stand_for_the_codes_values(target: Any) -> None:
    """value = unit * (byte - offset), exactly, and the bytes use the bits that they claim."""
    for dtype in CODED:
        coded = byte_codes(dtype, target)
        if coded is None:
            continue
        every = np.arange(1 << dtype.bits, dtype=np.uint8)
        table = np.array(coded.table or every, np.float64)
        assert np.array_equal(coded.unit * (table - coded.offset), decoded(every, dtype))
        assert table.min() >= 0 and table.max() < 1 << coded.bits and coded.bits <= 8
        word = Value(RegisterType(I32, Layout(2).spatial(1, 64)), "w")
        four = np.resize(every, 256).astype(np.uint8)
        written = Written({word: four.view(np.int32).reshape(1, 64)})
        found = written.value(coded.emit(written.b, word))
        assert np.array_equal(found.view(np.uint8).ravel(), table[four].astype(np.uint8))


def test_which_formats_are_integers_in_disguise() -> None:
    """f4e2m1 has 0, 0.5, 1 … 6: twice each is a whole number."""
    wide = {d.name for d in CODED if not d.is_int and byte_codes(d, named_target("znver4"))}
    narrow = {d.name for d in CODED if not d.is_int and byte_codes(d, named_target("x86-64-v3"))}
    assert {"f3e1m1", "f3e2m0", "f4e2m1", "f4e1m2"} <= narrow < wide
    assert "f6e2m3" in wide and not {"f8e4m3", "nf4", "f6e4m1", "test_uneven"} & wide
