"""The meaning of operations at ordinary and at odd values, against formulas in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.ir.examples import ROW_SINK, SINK, X, Y, on_streams, pointwise
from tests.ir.formulas import BINARY, EDGES, PLAIN, UNARY
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse

INF, NAN = math.inf, math.nan


def _agree(got: float, want: float) -> bool:
    if math.isnan(want) or math.isinf(want) or want == 0:
        return got == want or (math.isnan(got) and math.isnan(want))
    return abs(got - want) <= 4e-16 * abs(want) * 4


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name: str) -> None:
    values = PLAIN + EDGES
    (got,) = evaluate(parse(pointwise(name, 1)), np.array(values), precision="f64")
    for x, y in zip(values, got, strict=True):
        assert _agree(y, UNARY[name](x)), f"{name}({x}) = {y}, not {UNARY[name](x)}"


@pytest.mark.parametrize("name", [n for n in BINARY if n != "pow"])
def test_functions_of_two_numbers(name: str) -> None:
    grid = list(itertools.product(PLAIN + EDGES, repeat=2))
    left, right = (np.array(v) for v in zip(*grid, strict=True))
    (got,) = evaluate(parse(pointwise(name, 2)), left, right, precision="f64")
    for (a, b), y in zip(grid, got, strict=True):
        assert _agree(y, BINARY[name](a, b)), f"{name}({a}, {b}) = {y}, not {BINARY[name](a, b)}"


def test_powers() -> None:
    left, right = np.array([2.0, 9.0, -2.0, -2.0, 0.0]), np.array([3.0, 0.5, 3.0, 0.5, 0.0])
    (got,) = evaluate(parse(pointwise("pow", 2)), left, right, precision="f64")
    np.testing.assert_allclose(got, [8.0, 3.0, -8.0, NAN, 1.0])


@pytest.mark.parametrize("relation", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(relation: str) -> None:
    formulas = {
        **{"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b},
        **{"ge": lambda a, b: a >= b, "eq": lambda a, b: a == b, "ne": lambda a, b: a != b},
    }
    grid = list(itertools.product([0.0, -0.0, 1.0, INF, -INF, NAN], repeat=2))
    left, right = (np.array(v) for v in zip(*grid, strict=True))
    text = pointwise("compare", 2, attrs=f'{{relation = "{relation}"}}')
    (got,) = evaluate(parse(text), left, right, precision="f64")
    assert got.tolist() == [formulas[relation](a, b) for a, b in grid]


def test_integer_division_rounds_down_and_by_zero_is_zero() -> None:
    left, right = np.array([7, -7, 7, -7, 5, 0]), np.array([2, 2, -2, -2, 0, 0])
    (got,) = evaluate(parse(pointwise("div", 2, "i64")), left, right)
    assert got.tolist() == [3, -4, -4, 3, 0, 0]


def test_reduction_with_rescaling() -> None:
    line = '%r = stream.reduce %a, %b {kind = "sum", axis = "m"}'
    example = on_streams("stream.reduce", line, ROW_SINK, X, Y, want=None)
    (got,) = evaluate(example.module, X, Y, precision="f64")
    for row, x, scale in zip(got, X, Y, strict=True):
        state = 0.0
        for value, factor in zip(x, scale, strict=True):
            state = state * factor + value
        assert row == state


def test_scan_gives_what_was_before() -> None:
    line = '%now, %r = stream.scan %a {kind = "max", axis = "m"}'
    example = on_streams("stream.scan", line, f"%o = {SINK}", X, Y, want=None)
    (got,) = evaluate(example.module, X, Y, precision="f64")
    assert got.tolist() == [[-INF, 1.0, 1.0], [-INF, 0.5, 4.0]]
