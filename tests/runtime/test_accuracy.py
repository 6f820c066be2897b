"""Bounds of results: floats by their dtype, integers exactly, unless floats went into them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tilewright.ir.core import Graph
from tilewright.runtime.accuracy import (
    ROUNDED_SHARE,
    errors_over_bounds,
    integer_error,
    relative_error,
)

MIXED = tilewright.parse(
    """
graph mixed<N>(%x: tensor<N x f16>, %i: tensor<N x i32>) {
  %j = math.add %i, %i
  %r = math.cast %x {dtype = i32}
  %k = math.add %r, %i
  %y = math.add %x, %x
  return %j, %k, %y
}
"""
).main


def errors(graph: Graph, *apart: int) -> list[float]:
    """Of three results of 100 places, the first place of each so far off."""
    right = [torch.full((100,), 7, dtype=d) for d in (torch.int32, torch.int32, torch.float16)]
    ours = [x.clone() for x in right]
    for x, off in zip(ours, apart, strict=True):
        x[0] += off
    return errors_over_bounds(graph, ours, right, 2e-2)


def test_integers_beside_half_floats_are_held_to_their_own_bounds() -> None:
    assert errors(MIXED, 0, 0, 0) == [0.0, 0.0, 0.0]
    exact, rounded, _ = errors(MIXED, 1, 1, 0)
    assert exact == math.inf, "no float went into it"
    assert rounded == 1.0, "one place may be rounded to the neighbour"
    assert errors(MIXED, 0, 2, 0)[1] == math.inf
    assert errors(MIXED, 0, 0, 1)[2] == pytest.approx(1 / 7 / 2e-2)


@given(st.integers(1, 5000), st.integers(0, 5000), st.booleans())
def test_few_integers_may_be_neighbours(count: int, wrong: int, exact: bool) -> None:
    wrong = min(wrong, count)
    right = torch.arange(count)
    ours = right.clone()
    ours[:wrong] += torch.tensor([1, -1]).repeat(wrong)[:wrong]
    error = integer_error(ours, right, exact)
    assert (error <= 1.0) == (wrong == 0 or (not exact and wrong <= max(1, ROUNDED_SHARE * count)))
    assert (error == 0.0) == (wrong == 0)


def test_truth_values_and_shapes() -> None:
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    assert integer_error(yes, yes, True) == 0.0 and integer_error(yes, no, True) == math.inf
    assert integer_error(yes, no, False) == 3.0, "three places where one may be"
    assert integer_error(torch.zeros(3), torch.zeros(1, 3), False) == math.inf


def test_infinities_have_to_be_the_same() -> None:
    x = torch.tensor([1.0, math.inf, math.nan])
    assert relative_error(x, x) == 0.0
    assert relative_error(torch.tensor([1.0, -math.inf, math.nan]), x) == math.inf
    assert relative_error(torch.tensor([1.0, math.inf, 0.0]), x) == math.inf
    assert relative_error(torch.tensor([1.5, math.inf, math.nan]), x) == 0.5
