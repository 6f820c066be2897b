"""How many neighbours a gather reads at once follows from how its offsets are made: whatever these
are, the kernel reads the right numbers, and none at once that do not lie at a multiple of their
size (the emulation refuses it)."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.backends.cuda.running import run_emulated
from tilewright.backends.cuda.emit import emit_cuda
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.emitter import TileBuilder

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
ROWS, COLUMNS, MEMORY, WRAPPED = 4, 128, 1024, 512
LAYOUT = Layout(2).local(ROWS, 1).spatial(1, 32).local(1, 4)
KINDS = {"+": m.Add, "*": m.Mul, "/": m.Div, "%": m.Mod, "min": m.Min}

# an expression: "row", "column", or (kind, expression, number or expression)
leaves = st.sampled_from(["row", "column", "column"])
expressions = st.recursive(
    leaves,
    lambda x: st.one_of(
        st.tuples(st.sampled_from(["+", "*", "/", "%", "min"]), x, st.integers(1, 40)),
        st.tuples(st.just("%"), x, st.sampled_from([4, 8, 16])),
        st.tuples(st.just("/"), x, st.sampled_from([4, 8, 16])),
        st.tuples(st.just("+"), x, x),
    ),
    max_leaves=3,
)


def tile(b: TileBuilder, expression: Any) -> Value:
    if expression in ("row", "column"):
        dim = int(expression == "column")
        layout = LAYOUT.collapse(1 - dim)
        here = b(t.Coordinate, dim=dim, layout=layout, hint=expression)
        return b(m.Add, here, b.filled(0, I64, LAYOUT), hint=expression)
    kind, x, y = expression
    other = b.number(y, I64) if isinstance(y, int) else tile(b, y)
    return b(KINDS[kind], tile(b, x), other, hint="x")


def gathering(expression: Any, start: int) -> Graph:
    """Memory at the offsets that an expression gives, wrapped, from a start on."""
    b = TileBuilder()
    memory = Value(BufferType((Size.of(MEMORY),), I32, 0), "memory")
    out = Value(BufferType((Size.of(ROWS), Size.of(COLUMNS)), I32, 1), "out")
    zero = b.index(0)
    offsets = b(m.Mod, tile(b, expression), b.number(WRAPPED, I64), hint="offsets")
    found = b(t.Gather, memory, b.index(start), offsets, hint="found")
    b.store(found, out, [zero, zero], (0, 1))
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 1, "target": "cuda-sm90", "warps": 1}
    attrs |= {"stages": 1, "bulk": False, "shared": (), "shared_bytes": 0}
    return Graph("tile", "gathering", (), Region((memory, out), tuple(b.top.ops)), attrs)


@settings(max_examples=20, phases=QUICK, deadline=None)
@given(expression=expressions, start=st.integers(0, 12))
@example("column", 4)
@example("column", 2)  # 8 bytes at once
@example(("+", ("%", "column", 16), ("*", "row", 64)), 0)
@example(("%", "column", 6), 0)  # wraps inside of four neighbours
@example(("/", "column", 3), 0)
@example(("+", ("*", ("/", "column", 3), 4), "column"), 0)
@example("row", 0)  # four times the same
@example(("+", ("*", "row", 3), "column"), 0)  # rows begin anywhere
@example(("%", ("+", "column", 2), 16), 0)
def test_gathers_read_what_offsets_say(expression: Any, start: int) -> None:
    graph = gathering(expression, start)
    memory = np.arange(MEMORY, dtype=np.int32) * 7 + 1
    (want,) = evaluate_graph(graph, memory)
    (got,) = run_emulated(graph, emit_cuda(graph, "kernel"), [memory], {})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("expression", "start", "bytes_"),
    [
        ("column", 4, 16),
        ("column", 2, 8),
        ("column", 1, 4),
        (("+", ("%", "column", 16), ("*", "row", 64)), 0, 16),  # words of keys in a cache
        (("+", ("/", "column", 16), ("*", ("%", "column", 8), 1)), 0, 4),
        (("%", "column", 6), 0, 8),
    ],
)
def test_neighbours_are_read_at_once(expression: Any, start: int, bytes_: int) -> None:
    text = emit_cuda(gathering(expression, start), "kernel").text
    assert ("global_load_vec" in text) == (bytes_ > 4)
    assert bytes_ == 4 or f"global_load_vec<{bytes_}>" in text
