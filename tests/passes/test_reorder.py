"""The factor and running rules: which programs they change, which they must leave, the numbers.

The other rules are in ``test_reorder_rules.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.strategies import AttentionShape, attention_programs
from tilewright.ir.core import Module
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.reorder import RULES, reorder

RNG = np.random.default_rng(0)
X, V = RNG.standard_normal((2, 3, 6))


def program(body: str, more: str = "", dtype: str = "f32") -> Module:
    """A stream program over %x [N, M], %v [N, M] and %r [N, 1]; %s is computed, so that its uses
    share one axis."""
    step = "%s = math.neg %x" if dtype == "i64" else "%s = math.tanh %x"
    params = f"%x: tensor<N x M x {dtype}>, %v: tensor<N x M x {dtype}>{more}"
    head = f"graph f<N, M>({params}) {{\n{step}\n"
    return streamed(parse(head + body + "\nreturn %o }"))


EXP = (
    '%top = tensor.reduce %s {kind = "max", axis = 1, keep = true}\n'
    "%d = math.sub %s, %top\n%e = math.exp %d\n"
)


def total(value: str) -> str:
    return f'%o = tensor.reduce {value} {{kind = "sum", axis = 1}}'


def check(module: Module, *inputs: Any, changes: bool | None = None) -> str:
    after = reorder(module)
    if changes is not None:
        assert (str(after) != str(module)) == changes
    want = evaluate(module, *inputs, precision="f64")
    for a, b in zip(evaluate(after, *inputs, precision="f64"), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    return str(after)


def test_rules_have_names_and_their_algebra() -> None:
    assert [r.name for r in RULES] == [
        "hoist",
        "logarithm",
        "moments",
        "distribute",
        "maximum",
        "factor",
        "running",
    ]
    assert all(r.apply.__doc__ and "->" in r.apply.__doc__ for r in RULES)


RUNNING = {
    "sum of exponentials": EXP + total("%e"),
    "weighted sum": EXP + "%w = math.mul %e, %v\n" + total("%w"),
    "weights that use the scores": EXP + "%w = math.mul %s, %e\n" + total("%w"),
    "quotient": EXP + "%y = math.exp %v\n%w = math.div %e, %y\n" + total("%w"),
    "narrowed": EXP
    + "%n = math.cast %e {dtype = bf16}\n%w = math.cast %n {dtype = f32}\n"
    + total("%w"),
    "a square": EXP + "%w = math.mul %e, %e\n" + total("%w"),
    "a cube": EXP + "%f = math.mul %e, %e\n%w = math.mul %f, %e\n" + total("%w"),
    "a sum with something else": EXP + "%w = math.add %e, %v\n" + total("%w"),
    "a sum with its own square": EXP + "%f = math.mul %e, %e\n%w = math.add %e, %f\n" + total("%w"),
    "the maximum of other scores": '%y = math.tanh %v\n%top = tensor.reduce %y {kind = "max", '
    "axis = 1, keep = true}\n%d = math.sub %s, %top\n%e = math.exp %d\n" + total("%e"),
    "the minimum": EXP.replace('"max"', '"min"') + total("%e"),
    "powers of two": EXP.replace("math.exp", "math.exp2") + total("%e"),
    "a choice": EXP
    + "%z = math.const {value = 0.0, type = tensor<f32>}\n"
    + '%c = math.compare %v, %z {relation = "lt"}\n%n = math.neg %e\n'
    + "%a = math.select %c, %n, %z\n%w = math.select %c, %a, %e\n"
    + total("%w"),
    "softmax": "%p = tensor.softmax %s {axis = 1}\n%w = math.mul %p, %v\n" + total("%w"),
    "safe softmax": "%p = tensor.softmax %s {axis = 1, safe = true}\n%w = math.mul %p, %v\n"
    + total("%w"),
    "log of the sum": EXP + '%t = tensor.reduce %e {kind = "sum", axis = 1, keep = true}\n'
    "%l = math.log %t\n%o = math.add %l, %top",
    "the maximum is a result too": EXP
    + '%t = tensor.reduce %e {kind = "sum", axis = 1, keep = true}\n'
    "%o = math.mul %t, %top",
}


@pytest.mark.parametrize("body", RUNNING.values(), ids=RUNNING)
def test_running_maximum(body: str) -> None:
    text = check(program(body), X, V, changes=True)
    assert "stream.scan" in text and "%rescale" in text


LEFT_ALONE = {
    "the exponential is a result": EXP + "%o = math.neg %e",
    "a maximum of exponentials": EXP + '%o = tensor.reduce %e {kind = "max", axis = 1}',
    "a divisor": EXP + "%w = math.div %v, %e\n" + total("%w"),
    "a square root": EXP + "%w = math.sqrt %e\n" + total("%w"),
    "a sum with its own square": EXP
    + "%f = math.mul %e, %e\n%w = math.add %e, %f\n%z = math.tanh %w\n"
    + total("%z"),
    "exp2 of something else": EXP + "%n = math.exp %e\n" + total("%n"),
}


@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_no_running_maximum(body: str) -> None:
    assert "stream.scan" not in check(program(body), X, V)


@pytest.mark.parametrize("scaled", ["math.mul %x, %c", "math.sub %x, %c"])
def test_an_exponential_in_no_loop(scaled: str) -> None:
    module = streamed(
        parse(
            "graph f(%x: tensor<1 x f32>) {\n"
            "%c = math.const {value = 0.5, type = tensor<f32>}\n"
            f"%a = {scaled}\n%o = math.exp %a\nreturn %o }}"
        )
    )
    check(module, np.array([0.25]), changes=False)


QUADRATIC = {
    "e * (e * v)": EXP + "%f = math.mul %e, %v\n%w = math.mul %e, %f\n" + total("%w"),
    "e * (cast e * v)": EXP + "%a = math.cast %e {dtype = f64}\n%f = math.cast %a {dtype = f32}\n"
    "%h = math.mul %f, %v\n%w = math.mul %h, %e\n" + total("%w"),
    "e / v * e": EXP
    + "%y = math.exp %v\n%f = math.div %e, %y\n%w = math.mul %f, %e\n"
    + total("%w"),
}


@pytest.mark.parametrize("body", QUADRATIC.values(), ids=QUADRATIC)
def test_products_of_exponentials_are_rescaled_as_often(body: str) -> None:
    text = check(program(body), X, V, changes=True)
    assert text.count("stream.scan") == 1 and "math.mul %rescale, %rescale" in text


@pytest.mark.parametrize("other", ["1.0", "-2.5"])
def test_a_reference_chosen_by_the_user(other: str) -> None:
    body = (
        '%top = tensor.reduce %s {kind = "max", axis = 1, keep = true}\n'
        f"%c = math.const {{value = {other}, type = tensor<f32>}}\n"
        "%ref = math.select %flag, %c, %top\n"
        "%d = math.sub %s, %ref\n%e = math.exp %d\n" + total("%e")
    )
    module = program(body, ", %flag: tensor<N x 1 x bool>")
    check(module, X, V, np.array([[True], [False], [True]]))


def test_equal_scores_and_falling_scores() -> None:
    module = program(RUNNING["weighted sum"])
    for x in (np.zeros((3, 6)), -np.arange(18.0).reshape(3, 6), np.arange(18.0).reshape(3, 6)):
        check(module, x, V)


MASK = "%no = math.const {value = -inf, type = tensor<f32>}\n%s = math.select %c, %x, %no\n"


def masked(body: str) -> Module:
    params = "%x: tensor<N x M x f32>, %v: tensor<N x M x f32>, %c: tensor<N x M x bool>"
    head = f"graph f<N, M>({params}) {{\n"
    return streamed(parse(head + MASK + body + "\nreturn %o }"))


@pytest.mark.parametrize("safe", ["true", "false"])
@pytest.mark.parametrize(
    "row", [[0] * 6, [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0], [1] * 6]
)
def test_masked_rows(safe: str, row: list[int]) -> None:
    """A row of which nothing is left gives 0 (safe) or NaN, whatever comes first in it."""
    body = f"%p = tensor.softmax %s {{axis = 1, safe = {safe}}}\n%w = math.mul %p, %v\n" + total(
        "%w"
    )
    text = check(masked(body), X, V, np.array([row] * 3, bool), changes=True)
    assert "stream.scan" in text


SPECIAL = [np.inf, -np.inf, np.nan, 1e300, -1e300, 5e-324]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("where", ["scores", "values"])
def test_special_values(value: float, at: int, where: str) -> None:
    module = masked("%p = tensor.softmax %s {axis = 1}\n%w = math.mul %p, %v\n" + total("%w"))
    x, v, c = X.copy(), V.copy(), np.ones((3, 6), bool)
    (x if where == "scores" else v)[1, at] = value
    check(module, x, v, c)
    check(module, x, v, np.arange(6) < [[6], [4], [1]])


@pytest.mark.xfail(strict=True, reason="exp(-inf - -inf) is NaN, and 0 with the running maximum")
def test_a_sum_of_exponentials_over_nothing() -> None:
    module = masked(EXP + total("%e"))
    check(module, X, V, np.zeros((3, 6), bool))


@pytest.mark.xfail(strict=True, reason="the division moves out of an empty sum: 0 / 0 instead of 0")
def test_attention_to_no_keys_with_the_plain_softmax() -> None:
    module = program("%p = tensor.softmax %s {axis = 1}\n%w = math.mul %p, %v\n" + total("%w"))
    check(module, X[:, :0], V[:, :0])


def constant(value: float, dtype: str = "f32") -> str:
    return f"%c = math.const {{value = {value}, type = tensor<{dtype}>}}\n"


FACTOR = {
    "product with a constant": constant(3.0) + "%w = math.mul %s, %c\n" + total("%w"),
    "constant first": constant(3.0) + "%w = math.mul %c, %s\n" + total("%w"),
    "quotient by a constant": constant(3.0) + "%w = math.div %s, %c\n" + total("%w"),
    "quotient by a row's number": "%w = math.div %s, %r\n" + total("%w"),
    "product with both": constant(3.0)
    + "%a = math.mul %s, %r\n%b = math.div %a, %c\n"
    + total("%b"),
    "inside a product": "%a = math.div %s, %r\n%w = math.mul %a, %v\n" + total("%w"),
    "inside a quotient": "%y = math.exp %v\n%a = math.mul %s, %r\n%w = math.div %a, %y\n"
    + total("%w"),
    "under a cast": "%a = math.div %s, %r\n%b = math.cast %a {dtype = bf16}\n"
    "%w = math.cast %b {dtype = f32}\n" + total("%w"),
}


@pytest.mark.parametrize("body", FACTOR.values(), ids=FACTOR)
def test_factors_move_out_of_sums(body: str) -> None:
    r = np.array([[0.5], [-2.0], [4.0]])
    check(program(body, ", %r: tensor<N x 1 x f32>"), X, V, r, changes=True)


STAYS = {
    "a factor that changes along the row": "%w = math.mul %s, %v\n" + total("%w"),
    "a divisor that changes along the row": "%y = math.exp %v\n%w = math.div %s, %y\n"
    + total("%w"),
    "a maximum": constant(-3.0)
    + '%w = math.mul %s, %c\n%o = tensor.reduce %w {kind = "max", axis = 1}',
    "a summand": constant(3.0) + "%w = math.add %s, %c\n" + total("%w"),
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_what_is_no_factor(body: str) -> None:
    check(program(body), X, V, changes=False)


@pytest.mark.parametrize("divisor", ["constant", "row"])
def test_integer_quotients_stay_inside(divisor: str) -> None:
    numbers = RNG.integers(-9, 9, (3, 6))
    if divisor == "constant":
        module = program(constant(2, "i64") + "%w = math.div %s, %c\n" + total("%w"), dtype="i64")
        check(module, numbers, numbers)
    else:
        body = "%w = math.div %s, %r\n" + total("%w")
        module = program(body, ", %r: tensor<N x 1 x i64>", "i64")
        check(module, numbers, numbers, np.array([[2], [3], [5]]))


@pytest.mark.parametrize("factor", ["inf", "-inf", "0.0"])
def test_factors_that_are_not_finite(factor: str) -> None:
    op = "math.div" if factor == "0.0" else "math.mul"
    body = constant(float(factor)) + f"%w = {op} %s, %c\n" + total("%w")
    check(program(body), X, V, changes=False)


@given(st.data())
@settings(max_examples=40)
def test_attention_with_special_values(data: st.DataObject) -> None:
    """NaN and infinities in the inputs come out where they do without the rules."""
    shape = AttentionShape(1, 1, 3, 5, 2, 2)
    steps = ["scale", "bias", "causal", "key_mask"]
    drawn = data.draw(attention_programs(shape=shape, score_steps=steps, statistics=False))
    which = data.draw(st.integers(0, 2))
    x = drawn.inputs[which].copy()
    at = data.draw(st.integers(0, x.size - 1))
    x.reshape(-1)[at] = data.draw(st.sampled_from([np.inf, -np.inf, np.nan, 5e-324]))
    inputs = tuple(x if i == which else v for i, v in enumerate(drawn.inputs))
    stream = streamed(drawn.module)
    want = evaluate(stream, *inputs, precision="f64", sizes=drawn.sizes)
    got = evaluate(reorder(stream), *inputs, precision="f64", sizes=drawn.sizes)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-9, atol=1e-9)
