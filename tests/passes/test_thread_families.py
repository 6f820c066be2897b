"""Which tiles threads hold how: warps that share rows, right sides that threads make together,
views of words, lines of memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import BF16, F16, F32, I8, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.ops_tile_blocks import Unpack
from tilewright.ir.packing import Packing
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType, RegisterType
from tilewright.passes.to_threads.families import block_layouts, made_together
from tilewright.passes.to_threads.layouts import Made
from tilewright.passes.to_threads.lines import LEAST, in_lines
from tilewright.passes.to_threads.lower import lower_threads
from tilewright.passes.to_tile.emitter import TileBuilder

WIDE = {BF16: I32, F16: I32, F32: I64}  # words of two numbers


def whole(rows: int, columns: int) -> Layout:
    return Layout(2).local(rows, columns)


def graph_of(b: TileBuilder, params: tuple[Value, ...] = (), **attrs: Any) -> Graph:
    every = {"grid": (), "outputs": 0, "target": "cuda-sm80", "warps": 4, "stages": 2, **attrs}
    return Graph("tile", "f", (), Region(params, tuple(b.top.ops)), every)


def made_by(graph: Graph) -> dict[Value, Op]:
    return {v: op for op in graph.body.walk() for v in op.results}


def product(dtype: DType, rows: int, warps: int, coded: bool) -> Graph:
    """A product of so many rows; ``coded``: of a left side that words are seen as."""
    b, terms = TileBuilder(), 32 if dtype == I8 else 16
    a = b.filled(0, WIDE[dtype] if coded else dtype, whole(rows, terms // 2 if coded else terms))
    if coded:
        a = b(View, a, dtype=dtype, layout=whole(rows, terms))
    sums = b.filled(0, I32 if dtype == I8 else F32, whole(rows, 8))
    b(t.Product, sums, a, b.filled(0, dtype, whole(terms, 8)))
    return graph_of(b, warps=warps)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_warps_share_rows(dtype: DType, coded: bool) -> None:
    """As many warps as have 16 rows each, but a group's four to read right sides; of codes, each of
    which is to be unpacked once, no more than have rows of their own."""
    for rows, warps in itertools.product((16, 32, 48, 64, 128), (1, 2, 4, 8)):
        graph = product(dtype, rows, warps, coded)
        made = made_by(graph)
        found = block_layouts(graph, made.get).warps
        least = 1 if coded else min(warps, 4)
        several = [w for w in (8, 4, 2, 1) if least <= w <= warps and rows % (16 * w) == 0]
        assert found == max(several, default=least), (rows, warps)
        for wanted in (1, 2, 8):
            assert block_layouts(graph, made.get, wanted).warps == wanted


def test_sums_of_integers_are_no_left_side() -> None:
    """A thread has two sums beside each other, and takes four bytes."""
    graph = product(I8, 64, 4, False)
    with pytest.raises(UnsupportedError, match="m16n8k32 takes its left side in its own way"):
        block_layouts(graph, made_by(graph).get)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("bits", [8, 3])
def test_what_is_unpacked_is_made_together(dim: int, bits: int) -> None:
    """Wherever on its way it meets numbers from elsewhere: a loop's, loaded, or constant ones."""
    b, shape, packing = TileBuilder(), (32, 32), Packing.quads(bits, 16, 32)
    count = packing.chunk
    part = whole(*(n // count if d == dim else n for d, n in enumerate(shape)))
    words = [b.filled(0, I32, part) for _ in range(packing.words)]
    attrs = {"packing": str(packing), "dim": dim, "dtype": BF16, "layout": whole(*shape)}
    codes = b(Unpack, *words, **attrs)
    carried = Value(RegisterType(BF16, whole(*shape)), "carried")
    others = [carried, b.filled(1, BF16, whole(*shape)), b.number(2, BF16)]
    acc, a = b.filled(0, F32, whole(16, 32)), b.filled(0, BF16, whole(16, 32))
    wanted = Made(shape, dim, count)
    for other in others:
        for sides in ((codes, other), (other, codes)):
            right = b(m.Mul, *sides)
            for later in (right, b(m.Add, right, other), b(m.Sub, other, right)):
                op = t.Product(acc, a, later)
                assert made_together(op, made_by(graph_of(b)).get) == wanted
    plain = t.Product(acc, a, b(m.Mul, carried, carried))
    assert made_together(plain, made_by(graph_of(b)).get) is None


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
def test_words_are_seen_as_columns(shape: tuple[int, int]) -> None:
    """Threads hold the two numbers of a word beside each other in a row, not in a column."""
    b, (rows, terms) = TileBuilder(), shape
    memory = Value(BufferType((Size.of(16), Size.of(16)), I32, 1), "words")
    out = Value(BufferType((Size.of(rows), Size.of(8)), F32, 1), "out")
    zero = b.index(0)
    words = b.load(memory, [zero, zero], (0, 1), whole(16, 16))
    seen = b(View, words, dtype=BF16, layout=whole(*shape))
    right = b.filled(1, BF16, whole(terms, 8))
    found = b(t.Product, b.filled(0, F32, whole(rows, 8)), seen, right)
    b.store(found, out, [zero, zero], (0, 1))
    graph = graph_of(b, (memory, out), outputs=1, warps=1)
    if shape == (16, 32):
        assert lower_threads(graph)
    else:
        with pytest.raises(UnsupportedError, match="seen as bf16 by threads"):
            lower_threads(graph)


@pytest.mark.parametrize("dim", [0, 1])
def test_lines_of_memory(dim: int) -> None:
    """Several lines of eight numbers or more become loads of lines, with an offset for each; what
    is shorter, or one line alone (a vector, which any lanes may have), stays as it is. What is read
    is the same."""
    for count, length in itertools.product((1, 2, 16), (1, 4, 8, 16)):
        shape = (count, length) if dim == 1 else (length, count)
        across = (count, 1) if dim == 1 else (1, count)
        along = (1, length) if dim == 1 else (length, 1)
        b = TileBuilder()
        memory = Value(BufferType((Size.of(1024),), F32, 0), "memory")
        out = Value(BufferType(tuple(map(Size.of, shape)), F32, 1), "out")
        first = b(t.Coordinate, dim=1 - dim, layout=whole(*across))
        first = b(m.Mul, b(m.Mul, first, first), b.number(3, I64))  # 0, 3, 12, … : no steps of one
        offsets = b(m.Add, first, b(t.Coordinate, dim=dim, layout=whole(*along)))
        zero = b.index(0)
        b.store(b(t.Gather, memory, zero, offsets), out, [zero, zero], (0, 1))
        graph = graph_of(b, (memory, out), outputs=1)
        lined = in_lines(graph)
        loads = [op for op in lined.body.walk() if isinstance(op, t.LoadLines)]
        assert bool(loads) == (count > 1 and length >= LEAST), shape
        for load in loads:
            assert load.dim == dim
            assert isinstance(load.offsets.type, RegisterType) and load.offsets.type.shape == across
        x = np.arange(1024, dtype=np.float32)
        np.testing.assert_array_equal(evaluate_graph(lined, x)[0], evaluate_graph(graph, x)[0])
