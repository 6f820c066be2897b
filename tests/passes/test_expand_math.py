"""Functions as polynomials: their error over dense grids and their values at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tilewright.ir.core import REGISTRY
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.expand_math import PARTS, expand_math

FUNCTIONS: dict[str, Any] = {
    "exp2": np.exp2,
    "exp": np.exp,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "log": np.log,
    "log2": np.log2,
}
WIDTH = 1 << 12


def run(name: str, x: np.ndarray, precision: str | None, dtype: str = "f32") -> np.ndarray:
    """The expanded function on ``x`` (a multiple of WIDTH numbers)."""
    layout = f"local(1, {WIDTH // 16}).spatial(1, 16)"
    type_ = f"buffer<N x {WIDTH} x {dtype}, unit 1>"
    text = f"""tile f<N>(%x: {type_}, %o: {type_})
    with {{grid = [[size(N), 1]], outputs = 1}} {{
      %i = tile.block {{dim = 0}}
      %c0 = math.const {{value = 0, type = index}}
      %a = tile.load %x, %i, %c0 {{dims = [0, 1], layout = {layout}}}
      %r = math.{name} %a
      tile.store %r, %o, %i, %c0 {{dims = [0, 1]}}
      return }}"""
    module = expand_math(parse(text))
    if dtype == "f32":
        assert not any(op.name == f"math.{name}" for op in module.main.body.walk())
    (out,) = evaluate(module, x.reshape(-1, WIDTH), precision=precision)
    return np.asarray(out, np.float64).reshape(-1)


def test_every_expansion_has_a_formula_here() -> None:
    assert {cls.name.split(".")[1] for cls in PARTS} == set(FUNCTIONS)
    assert all(cls in REGISTRY.values() for cls in PARTS)


def grid(low: float, high: float, blocks: int = 8) -> np.ndarray:
    return np.float64(np.float32(np.linspace(low, high, blocks * WIDTH)))


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-126, 127), (-1e-3, 1e-3)])
def test_polynomial_of_exp2(low: float, high: float) -> None:
    """As the docstring of expand_math promises, and far below the 6e-8 of f32's rounding."""
    x = grid(low, high)
    assert np.abs(run("exp2", x, "f64") / np.exp2(x) - 1).max() < 4e-9


# How many units of 2**-24, relative, the form computed in f32 may be off.
ALLOWED = {"exp2": 3.0, "exp": 6.0, "tanh": 6.0, "erf": 6.0, "sigmoid": 6.0, "rsqrt": 2.0}
ALLOWED.update(log=4.0, log2=4.0)
RANGES = {
    "exp2": (-120.0, 120.0),
    "exp": (-80.0, 88.0),
    "tanh": (-12.0, 12.0),
    "erf": (-6.0, 6.0),
    "sigmoid": (-3.0, 30.0),
    "rsqrt": (1e-20, 1e20),
    "log": (1.0001, 3e38),
    "log2": (1e-3, 0.9999),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_f32(name: str) -> None:
    x = grid(*RANGES[name])
    want = FUNCTIONS[name](x)
    error = np.abs(run(name, x, None) / want - 1) * 2.0**24
    assert error.max() <= ALLOWED[name], f"{error.max()} last places at {x[error.argmax()]}"


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_functions_through_zero(name: str) -> None:
    """As exact as their argument down to the smallest numbers, and never beyond 1."""
    size = np.float64(np.float32(10.0 ** np.linspace(-38, 1.5, 16 * WIDTH)))
    x = np.concatenate([size, -size])
    got, want = run(name, x, None), FUNCTIONS[name](x)
    assert np.abs(got).max() == 1
    assert (np.abs(got / want - 1) * 2.0**24).max() <= ALLOWED[name]


@pytest.mark.parametrize(("name", "error"), [("tanh", 3e-8), ("erf", 3e-8)])
def test_ratios(name: str, error: float) -> None:
    """As the docstring of expand_math promises, below and above where they are cut off."""
    x = grid(-12.0, 12.0)
    assert np.abs(run(name, x, "f64") / FUNCTIONS[name](x) - 1).max() < error


def test_exponentials_of_weights_pay_for_no_more() -> None:
    """Of a difference, and what stands beside 1 below 1: but not what is taken otherwise, too."""
    text = """tile f(%x: buffer<1 x 8 x f32, unit 1>, %o: buffer<1 x 8 x f32, unit 1>)
    with {grid = [[1, 1]], outputs = 1} {
      %c0 = math.const {value = 0, type = index}
      %a = tile.load %x, %c0, %c0 {dims = [0, 1], layout = spatial(1, 8)}
      %one = math.const {value = 1.0, type = reg<1 x 1 x f32, local(1, 1)>}
      %d = math.FIRST %a, %one
      %e = math.exp %d
      %s = math.add %e, %one
      %t = math.div %LEFT, %s
      tile.store %t, %o, %c0, %c0 {dims = [0, 1]}
      return }"""

    def careful(first: str, left: str) -> bool:
        module = expand_math(parse(text.replace("FIRST", first).replace("LEFT", left)))
        return "lost" in str(module)

    assert not careful("sub", "e")
    assert not careful("add", "one")
    assert careful("add", "e")
    assert careful("add", "a")


INF, NAN = math.inf, math.nan
EDGES = {
    "exp2": [(-INF, 0), (INF, INF), (0, 1), (128, INF), (1e30, INF), (-1e30, 0), (-160, 0), (1, 2)],
    "exp": [(-INF, 0), (INF, INF), (0, 1), (100, INF), (-1e30, 0), (-200, 0)],
    "tanh": [(-INF, -1), (INF, 1), (0, 0), (1e30, 1), (-1e30, -1), (50, 1)],
    "erf": [(-INF, -1), (INF, 1), (0, 0), (1e30, 1), (-1e30, -1), (5, 1)],
    "sigmoid": [(-INF, 0), (INF, 1), (0, 0.5), (200, 1), (-200, 0)],
    "rsqrt": [(0, INF), (INF, 0), (1, 1), (4, 0.5), (-1, NAN)],
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("precision", ["f64", None])
def test_edges(name: str, precision: str | None) -> None:
    points = [*EDGES[name], (NAN, NAN)]
    x = np.ones(WIDTH)
    x[: len(points)] = [p for p, _ in points]
    got = run(name, x, precision)[: len(points)]
    for (at, want), value in zip(points, got, strict=True):
        if precision == "f64" and abs(want) in (0, INF) and math.isfinite(at):
            continue  # a double holds it
        np.testing.assert_allclose(value, want, atol=1e-8, err_msg=f"{name}({at})")


def test_denormal_results_are_not_lost() -> None:
    x = np.full(WIDTH, -140.0)
    got = run("exp2", x, None)
    np.testing.assert_allclose(got, 2.0**-140, rtol=1e-2)


def test_doubles_keep_their_function() -> None:
    x = grid(-3, 3, 1)
    np.testing.assert_allclose(run("exp", x, None, "f64"), np.exp(x), rtol=1e-15)
