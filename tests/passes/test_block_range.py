"""Bounds of masks for some rows, against the rows' own positions one by one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.passes.test_mask_range import Comparison, comparisons
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.target import named_target
from tilewright.ir.types import BufferType
from tilewright.passes.reorder import reorder
from tilewright.passes.to_tile.block_range import BlockRange, Rows
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse
from tilewright.passes.to_tile.mask_range import find_mask_range
from tilewright.passes.to_tile.schedule import choose_schedule
from tilewright.passes.to_tile.state import LoweringState


def attention(masks: tuple[Comparison, ...]) -> KernelInfo:
    """Grouped attention whose scores are masked: g and n are rows, h is on the grid."""
    lines, seen = [c.text(f"a{i}") for i, c in enumerate(masks)], "%a0"
    for at in range(1, len(masks)):
        lines.append(f"%b{at} = math.and {seen}, %a{at}")
        seen = f"%b{at}"
    text = f"""graph f<H, G, N, M>(%q: tensor<H x G x N x 4 x f32>, %k: tensor<H x M x 4 x f32>,
                                  %v: tensor<H x M x 3 x f32>) {{
      %s = tensor.contract %q, %k {{equation = "hgnd,hmd->hgnm"}}
      %zero = math.const {{value = 0, type = tensor<i64>}}
      %h = tensor.iota {{axis = 0, type = tensor<H x 1 x 1 x 1 x i64>}}
      %n = tensor.iota {{axis = 2, type = tensor<1 x 1 x N x 1 x i64>}}
      %m = tensor.iota {{axis = 3, type = tensor<1 x 1 x 1 x M x i64>}}
      %no = math.const {{value = -inf, type = tensor<f32>}}
      {chr(10).join(lines)}
      %t = math.select {seen}, %s, %no
      %p = tensor.softmax %t {{axis = 3, safe = true}}
      %o = tensor.contract %p, %v {{equation = "hgnm,hme->hgne"}}
      return %o
    }}"""
    return analyse(reorder(streamed(parse(text))).main)


@lru_cache(maxsize=256)
def span_program(masks: tuple[Comparison, ...], count: int) -> Graph:
    """Writes the span of ``count`` rows from FIRST on, at position AT of the grid."""
    info = attention(masks)
    assert [a.name for a in info.rows] == ["g", "n"] and [a.name for a in info.grid] == ["h"]
    state = LoweringState(info, choose_schedule(named_target("scalar"), 0), {})
    b, out = state.build, Value(BufferType((Size.of(4),), I64, 0), "out")
    state.grid_at = {"h": b.size(Size.of("AT"))}
    state.row_total = b.size(info.row_count)
    mask = find_mask_range(info)
    assert len(mask.bounds) == len(masks) and not mask.tests
    found = BlockRange(state, mask, Rows(b.size(Size.of("FIRST")), count))
    for at, value in enumerate(found.find(b.size(info.inner.size))):
        b.store(b.splat(value, rank=1), out, [b.index(at)], [-1])
    attrs = {"grid": ((Size.of(1), 1),), "outputs": 1, "target": "scalar"}
    body = Region((out,), tuple(b.top.ops))
    return Graph("tile", "f", ("G", "N", "M", "AT", "FIRST"), body, attrs)


Drawn = tuple[int, int, int, int, int, int]


@st.composite
def drawn_rows(draw: st.DrawFn) -> Drawn:
    """Sizes G, N, M; where on the grid; the first row, and how many."""
    g, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 7))
    first = draw(st.integers(0, g * n - 1))
    return g, n, m, draw(st.integers(0, 2)), first, draw(st.sampled_from([1, 2, 4, 8]))


def spans(masks: tuple[Comparison, ...], rows: Drawn) -> tuple[range, range, list[set[int]]]:
    """Positions that may count, those that no mask touches, and what each row sees."""
    g, n, m, h, first, count = rows
    sizes = {"G": g, "N": n, "M": m, "AT": h, "FIRST": first}
    (out,) = evaluate_graph(span_program(masks, count), sizes=sizes)
    low, high, full_low, full_high = map(int, out)
    assert 0 <= low <= high <= m
    seen = [
        {at for at in range(m) if all(c.holds(h, row % n, at) for c in masks)}
        for row in range(first, min(first + count, g * n))
    ]
    return range(low, high), range(full_low, full_high), seen


@given(st.lists(comparisons(), min_size=1, max_size=3, unique=True).map(tuple), drawn_rows())
@settings(max_examples=60, deadline=None)
def test_nothing_seen_lies_outside_and_nothing_hidden_is_whole(
    masks: tuple[Comparison, ...], rows: Drawn
) -> None:
    some, whole, seen = spans(masks, rows)
    assert set().union(*seen) <= set(some)
    assert set(whole) <= set.intersection(*seen)


HIDING = [  # all that some rows see, or any row; and nothing at all
    *(Comparison(0, n, -1, c, "ge") for n in (0, 1, -1) for c in (-4, -1, 0, 4)),
    *(Comparison(0, n, 1, c, "ge") for n in (0, 1, -1) for c in (-9, -4, 0, 4)),
]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("mask", HIDING, ids=str)
def test_one_bound_is_exact(mask: Comparison, count: int) -> None:
    """For rows of one g nothing is looked at that no row sees, and what all of them see is whole;
    also where bounds lie before the first position or past the last."""
    for n, m, first in np.ndindex(4, 5, 4):
        rows = 2, n + 1, m, 0, min(first, n), min(count, n + 1 - min(first, n))
        some, whole, seen = spans((mask,), rows)
        assert set(some) == set().union(*seen)
        assert set(whole) == set.intersection(*seen)
