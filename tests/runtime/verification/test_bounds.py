"""The bound: it holds for the program in its own dtypes, and is close enough to catch errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.runtime.verification.bounds import bounded
from tilewright.runtime.verification.check import inputs_of
from tilewright.runtime.verification.compare import compare, to_numpy
from tilewright.runtime.verification.grammar.cases import KINDS, Place, cases
from tilewright.runtime.verification.rounded import Rounded, contracted

TENSOR = [Place("interpreter", None)]
EPS = 2.0**-24


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_the_program_as_written_stays_within(kind: str, data: st.DataObject) -> None:
    """In its own dtypes, operation by operation; and the exact values are the oracle's."""
    case = data.draw(cases(TENSOR, [kind]))
    module, call = parse(case.text), case.calls[0]
    arrays = [to_numpy(x) for x in inputs_of(module.main, call)]
    exact = bounded(module.main, *arrays)
    oracle = evaluate(module, *arrays, precision="f64")
    for ours, theirs in zip(exact, oracle, strict=True):
        np.testing.assert_array_equal(ours.x, theirs)
    found = compare(evaluate(module, *arrays), exact)
    assert found.good, (case, found)


def of(text: str, *inputs: Any) -> Rounded:
    """The first result of a graph over x."""
    return bounded(
        parse(f"graph f<N>(%x: tensor<N x f32>, %y: tensor<N x f32>) {{ {text} }}").main, *inputs
    )[0]


def test_cancellation_is_relative_to_the_terms() -> None:
    x = np.array([1e6, 1.0])
    found = of("%z = math.sub %x, %y return %z", x, x)
    assert (found.x == 0).all()
    np.testing.assert_allclose(found.error, 4 * EPS * 2 * x)


def test_a_sum_may_be_formed_in_any_order() -> None:
    x = np.array([1e8, 1.0, -1e8, 1.0])
    found = of('%z = tensor.reduce %x {kind = "sum", axis = 0} return %z', x, x)
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [1, 3, 0, 2]):
        total = np.float32(0)
        for at in order:
            total = total + np.float32(x[at])
        assert abs(total - found.x) <= found.error
    assert found.error < 100  # two of 4e8 in f32


def test_what_rounding_may_turn_over_is_unspecified() -> None:
    text = (
        '%s = math.add %x, %y %c = math.compare %s, %x {relation = "lt"} '
        "%z = math.select %c, %x, %y return %z"
    )
    found = of(text, np.array([1.0, 1.0]), np.array([1e-12, -1.0]))
    assert found.error[0] > 0.99 and found.error[1] == 0  # 1 or 1e-12; -1 for certain


def test_nan_and_quotients_by_zero_are_unspecified_and_infinite_masks_certain() -> None:
    x, y = np.array([np.nan, 1.0, 0.0]), np.array([1.0, 0.0, 5.0])
    assert list(np.isinf(of("%z = math.div %x, %y return %z", x, y).error)) == [True, True, False]
    masked = of("%z = math.exp %x return %z", np.array([-math.inf, 0.0]), np.zeros(2))
    assert masked.x[0] == 0 and masked.error[0] < 1e-30
    kept = of("%z = math.add %x, %y return %z", np.array([-math.inf]), np.array([3.0]))
    assert kept.x[0] == -math.inf and kept.error[0] == 0


def test_a_choice_among_near_numbers_is_unspecified() -> None:
    text = (
        "graph f<N>(%x: tensor<N x 4 x f32>) { %e = math.exp %x "
        "%v, %i = tensor.top_k %e {k = 2} return %i }"
    )
    x = np.array([[1.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]])
    (found,) = bounded(parse(text).main, x)
    assert np.isinf(found.error[0]).all() and (found.error[1] == 0).all()
    exact = parse(
        "graph f<N>(%x: tensor<N x 4 x f32>) { %v, %i = tensor.top_k %x {k = 2} return %i }"
    )
    assert (bounded(exact.main, x)[0].error == 0).all()  # equal numbers have an order


@pytest.mark.parametrize("far", [1e-3, 1e-1])
def test_an_error_of_a_thousandth_is_seen(far: float) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 8)) for n in (5, 40, 40))
    module = parse(
        "graph f<N, M>(%q: tensor<N x 8 x f32>, %k: tensor<M x 8 x f32>, %v: tensor<M x 8 x f32>) {"
        '%s = tensor.contract %q, %k {equation = "nd,md->nm"} %p = tensor.softmax %s {axis = 1}'
        '%o = tensor.contract %p, %v {equation = "nm,me->ne"} return %o }'
    )
    exact = bounded(module.main, q, k, v)
    assert compare([exact[0].x], exact).ratio == 0
    assert compare([exact[0].x * (1 + far)], exact).ratio > 1


def test_compare_sees_nan_infinities_and_shapes() -> None:
    want = (Rounded(np.array([1.0, -np.inf]), np.ones(2), np.array([1e-6, 0.0])),)
    assert compare([np.array([1.0, -np.inf])], want).ratio == 0
    for wrong in ([np.nan, -np.inf], [1.0, np.inf], [1.0, 0.0], [np.inf, -np.inf]):
        assert compare([np.array(wrong)], want).ratio == math.inf
    assert not compare([np.zeros(3)], want).good
    some = compare([np.array([1.0 + 2e-6, -np.inf])], want)
    assert some.ratio == pytest.approx(2) and some.bound == 1e-6 and not some.good


def test_an_operation_without_a_rule_is_named() -> None:
    from tilewright.runtime.verification import bounds

    module = parse("graph f<N>(%x: tensor<N x f32>) { %y = math.tanh %x return %y }")
    rules = dict(bounds.RULES)
    try:
        del bounds.RULES[type(module.main.body.ops[0])]
        with pytest.raises(UnsupportedError, match=r"no rule says what math\.tanh may round"):
            bounded(module.main, np.zeros(1))
    finally:
        bounds.RULES.update(rules)


def test_what_is_tiny_may_be_0_and_0_times_infinity_is_no_number() -> None:
    """A weight of softmax that f32 does not hold, and an infinite value (found by drawing)."""
    weights = Rounded(np.array([[1e-60, 0.5]]), np.array([[1e-60, 0.5]]), np.array([[1e-45, 1e-8]]))
    values = np.array([[np.inf, 1.0], [2.0, np.inf]])
    held = Rounded(values, np.where(np.isinf(values), 0.0, values), np.zeros((2, 2)))
    with np.errstate(all="ignore"):
        found = contracted(weights.x @ values, "ij,jk->ik", weights, held, F32)
    assert np.isinf(found.error[0, 0])  # 1e-60 of infinity, or nothing of it
    assert np.isfinite(found.error[0, 1])  # half of infinity is infinite
