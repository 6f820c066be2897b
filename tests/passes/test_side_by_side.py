"""Programs that share one queue of work items do what each does by itself, each block once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Module, Region, Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.layout import Layout
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.side_by_side import side_by_side

ROWS = 3


def named(number: int, size: int, tile: int, rows: int = 1, shared: int = ROWS) -> Graph:
    """out[r, i] = x[r] * own[i], by blocks of ``tile`` columns and ``rows`` rows."""
    b, layout = TileBuilder(), Layout(2).local(rows, tile)
    x = Value(BufferType((Size.of(shared),), F32, 0), "x")
    own = Value(BufferType((Size.of(size),), F32, 0), f"own{number}")
    out = Value(BufferType((Size.of(shared), Size.of(size)), F32, 1), f"out{number}")
    column = b.mul(b(t.BlockId, dim=0), tile)
    row = b.mul(b(t.BlockId, dim=1), rows)
    ends = (0, b.index(shared)), (1, b.index(size))
    left = b.load(x, [row], (0,), Layout(2).local(rows, 1), [(0, "zero", ends[0][1])])
    right = b.load(own, [column], (1,), Layout(2).local(1, tile), [(1, "zero", ends[1][1])])
    value = b(m.Add, b(m.Mul, left, right), b.filled(0, F32, layout))
    b.store(value, out, [row, column], (0, 1), ends)
    grid = ((Size.of(size), tile), (Size.of(shared), rows))
    attrs = {"grid": grid, "outputs": 1, "target": "host"}
    return Graph("tile", "f", (), Region((x, own, out), tuple(b.top.ops)), attrs)


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=4),
    tile=st.sampled_from([1, 2, 4]),
    rows=st.sampled_from([1, 2]),
)
def test_every_program_gives_its_own(sizes: list[int], tile: int, rows: int) -> None:
    """Sizes that are multiples of a block, less than one, and others."""
    programs = [named(n, size, tile, rows) for n, size in enumerate(sizes)]
    both = side_by_side(programs)
    assert parse(str(Module((both,)))) == Module((both,))
    assert [p.hint for p in both.params[: 1 + len(sizes)]] == [
        "x",
        *(f"own{n}" for n in range(len(sizes))),
    ]
    rng = np.random.default_rng(sum(sizes))
    x: Any = rng.integers(1, 9, ROWS).astype(np.float32)
    own: list[Any] = [rng.integers(1, 9, size).astype(np.float32) for size in sizes]
    found = evaluate_graph(both, x, *own)
    for program, given_, ours in zip(programs, own, found, strict=True):
        (alone,) = evaluate_graph(program, x, given_)
        assert np.array_equal(alone, np.outer(x, given_)) and np.array_equal(ours, alone)


def test_what_cannot_share_a_queue() -> None:
    with pytest.raises(UnsupportedError, match="other grids"):
        side_by_side([named(0, 8, 4), named(1, 8, 2)])
    with pytest.raises(UnsupportedError, match="other grids"):
        side_by_side([named(0, 8, 4, 1), named(1, 8, 4, 2)])
    with pytest.raises(UnsupportedError, match=r"%x is .* side by side"):
        first, second = named(0, 8, 4), named(1, 8, 4)
        x = Value(BufferType((Size.of(ROWS),), I32, 0), "x")
        body = Region((x, *second.params[1:]), second.body.ops)
        side_by_side([first, Graph("tile", "f", (), body, second.attrs)])
