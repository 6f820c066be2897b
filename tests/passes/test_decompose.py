"""Composite operations into parts: no composite left, and the same numbers at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.decompose import decompose

INF, NAN = math.inf, math.nan
ROWS = np.array(
    [
        *([1.0, 2.0, 3.0], [1e4, 0.0, -1e4], [-INF, -INF, -INF], [INF, 0.0, 1.0]),
        *([NAN, 0.0, 1.0], [-INF, 0.0, 1.0], [INF, -INF, INF], [-1e308, 1e308, 0.0]),
    ]
)


def softmax(safe: str, axis: int, dtype: str = "f32") -> str:
    return (
        f"graph f<N>(%x: tensor<N x 3 x {dtype}>) {{ "
        f"%p = tensor.softmax %x {{axis = {axis}, safe = {safe}}} return %p }}"
    )


@pytest.mark.parametrize("safe", ["true", "false"])
@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_at_the_edges(safe: str, axis: int) -> None:
    module = parse(softmax(safe, axis))
    (before,) = evaluate(module, ROWS, precision="f64")
    (after,) = evaluate(decompose(module), ROWS, precision="f64")
    np.testing.assert_allclose(after, before, rtol=1e-14)
    assert not any(op.name == "tensor.softmax" for op in decompose(module).main.body.walk())


@pytest.mark.parametrize("safe", ["true", "false"])
def test_softmax_over_another_axis(safe: str) -> None:
    module = parse(softmax(safe, 0))
    (before,) = evaluate(module, ROWS[:2], precision="f64")
    (after,) = evaluate(decompose(module), ROWS[:2], precision="f64")
    np.testing.assert_allclose(after, before, rtol=1e-14)


def test_softmax_of_no_rows_and_of_narrow_floats() -> None:
    module = parse(softmax("false", 0))
    assert evaluate(decompose(module), np.zeros((0, 3)))[0].shape == (0, 3)
    rng = np.random.default_rng(0)
    for dtype in ("bf16", "f16"):
        module = parse(softmax("false", 1, dtype))
        x: Any = rng.standard_normal((50, 3)) * 5
        (before,), (after,) = evaluate(module, x), evaluate(decompose(module), x)
        np.testing.assert_allclose(after, before, rtol=2.0**-7)
        assert str(decompose(module).main.results[0].type).endswith(f"{dtype}>")


def test_softmax_rows_of_narrow_floats_sum_to_one() -> None:
    """The parts are computed in f32: a sum of 4096 equal terms in bf16 would stop at 256."""
    text = "graph f<N>(%x: tensor<N x bf16>) { %p = tensor.softmax %x {axis = 0} return %p }"
    (got,) = evaluate(decompose(parse(text)), np.zeros(4096))
    np.testing.assert_array_equal(got, np.full(4096, 2.0**-12))


def test_sigmoid() -> None:
    module = parse("graph f<N>(%x: tensor<N x f32>) { %y = math.sigmoid %x return %y }")
    x = np.array([0.0, 1.0, -1.0, 800.0, -800.0, INF, -INF, NAN])
    (before,) = evaluate(module, x, precision="f64")
    (after,) = evaluate(decompose(module), x, precision="f64")
    np.testing.assert_allclose(after, before, rtol=1e-14)


def test_other_levels_are_left_alone() -> None:
    stream = parse("stream f() { return }")
    assert decompose(stream) == stream


PICKED = """graph f<N, M>(
    %q: tensor<N x 4 x {dtype}>, %k: tensor<M x 4 x {dtype}>, %ids: tensor<N x {n} x i64>
) {{
%a = math.cast %q {{dtype = f32}}
%b = math.cast %k {{dtype = f32}}
%s = tensor.contract %a, %b {{equation = "{equation}"}}
%x = math.cast %s {{dtype = {dtype}}}
%o = tensor.take_along %x, %ids {{axis = {axis}}}
return %o }}"""


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("axis", [1, -1])
def test_one_position_of_each_row_of_a_product_is_no_table(axis: int, dtype: str) -> None:
    """Positions outside read the nearest element inside, and infinities stay where they are."""
    text = PICKED.format(n=1, axis=axis, dtype=dtype, equation="nc,mc->nm")
    if dtype == "f64":
        text = text.replace("{dtype = f32}", "{dtype = f64}")
    module = parse(text)
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((9, 4)), rng.standard_normal((5, 4))
    k[2] = INF
    ids = np.array([[0], [1], [2], [3], [4], [5], [-1], [9], [-7]])
    (before,) = evaluate(module, q, k, ids)
    (after,) = evaluate(decompose(module), q, k, ids)
    np.testing.assert_array_equal(after, before)
    assert "take_along" not in str(decompose(module))


@pytest.mark.parametrize("case", ["two positions", "positions that a product chose", "an input"])
def test_other_look_ups_stay(case: str) -> None:
    text = PICKED.format(n=1, axis=1, dtype="f32", equation="nc,mc->nm")
    if case == "two positions":
        text = PICKED.format(n=2, axis=1, dtype="f32", equation="nc,mc->nm")
    elif case == "an input":
        text = text.replace("take_along %x", "take_along %q")
    else:
        chosen = "%v, %best = tensor.top_k %x {k = 1}\n%o"
        text = text.replace(
            "%o = tensor.take_along %x, %ids", f"{chosen} = tensor.take_along %x, %best"
        )
    assert "take_along" in str(decompose(parse(text)))
