"""Folds row by row: what they do, when they must not, and that numbers stay what they were."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tilewright.ir.core import Module
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.canonicalise import canonicalise


def program(body: str, dtype: str = "f32") -> Module:
    """%x [N], %y [N] of ``dtype``, %c [N] bool; ``{1.5}`` stands for a constant of ``dtype``."""
    head = (
        f"graph f<N>(%x: tensor<N x {dtype}>, %y: tensor<N x {dtype}>, %c: tensor<N x bool>) {{\n"
    )
    return parse(head + body + "\nreturn %r }")


def const(name: str, value: Any, type_: str = "f32") -> str:
    return f"%{name} = math.const {{value = {value}, type = tensor<{type_}>}}\n"


def ops(module: Module) -> list[str]:
    return [op.name for op in module.main.body.ops]


ONE, ZERO, TWO = const("one", 1.0), const("zero", 0.0), const("two", 2.0)
FOLDED = [
    (ZERO + "%r = math.add %x, %zero", []),
    (ZERO + "%r = math.add %zero, %x", []),
    (ZERO + "%r = math.sub %x, %zero", []),
    (ONE + "%r = math.mul %x, %one", []),
    (ONE + "%r = math.mul %one, %x", []),
    (ONE + "%r = math.div %x, %one", []),
    ("%r = math.cast %x {dtype = f32}", []),
    ("%r = math.select %c, %x, %x", []),
    (const("t", "true", "bool") + "%r = math.select %t, %x, %y", []),
    (const("t", "false", "bool") + "%r = math.and %t, %t", ["math.const"]),
    (const("t", "true", "bool") + "%r = math.and %c, %t", []),
    (const("t", "true", "bool") + "%r = math.or %t, %t", ["math.const"]),
    (const("t", "false", "bool") + "%r = math.or %t, %c", []),
    (TWO + "%r = math.div %x, %two", ["math.const", "math.mul"]),
    (TWO + "%a = math.mul %x, %two\n%r = math.mul %a, %two", ["math.const", "math.mul"]),
    ("%a = math.exp %x\n%b = math.exp %x\n%r = math.sub %a, %b", ["math.exp", "math.sub"]),
    ("%dead = math.exp %x\n%r = math.neg %y", ["math.neg"]),
]


@pytest.mark.parametrize(("body", "left"), FOLDED, ids=[b for b, _ in FOLDED])
def test_folds(body: str, left: list[str]) -> None:
    assert ops(canonicalise(program(body))) == left


THREE = const("three", 3.0)
KEPT = [
    ZERO + "%r = math.sub %zero, %x",
    ZERO + "%r = math.mul %x, %zero",  # NaN and infinities
    ONE + "%r = math.div %one, %x",
    THREE + "%r = math.div %x, %three",  # 1 / 3 is not exact
    "%r = math.sub %x, %x",
    const("t", "false", "bool") + "%r = math.and %c, %t",  # of another shape than %c
    "%a = math.cast %x {dtype = bf16}\n%r = math.cast %a {dtype = f32}",  # rounds
    # a mask stays the last step before what takes it only while -inf stays -inf
    const("minus", -3.0) + "%s = math.select %c, %x, %minus\n%r = math.mul %s, %minus",
]


@pytest.mark.parametrize("body", KEPT)
def test_what_must_stay(body: str) -> None:
    module = program(body)
    assert ops(canonicalise(module)) == ops(module)


X = np.array([0.0, -0.0, 1.5, -2.25, math.inf, -math.inf, math.nan, 1e-30, 1e30])
C = np.array([True, False, True] * 3)


@pytest.mark.parametrize("body", [b for b, _ in FOLDED if "bool>" not in b] + KEPT[:5])
@pytest.mark.parametrize("precision", ["f64", None])
def test_numbers_stay(body: str, precision: str | None) -> None:
    module = program(body)
    before = evaluate(module, X, X[::-1], C, precision=precision)
    after = evaluate(canonicalise(module), X, X[::-1], C, precision=precision)
    np.testing.assert_array_equal(after[0], before[0])


CHANGED = [
    pytest.param(
        const("a", 1e30) + "%p = math.mul %x, %a\n%r = math.mul %p, %a",
        *("f32", 1e-30, 1e30),
        id="(x * 1e30) * 1e30 becomes x * inf in f32",
    ),
    pytest.param(
        const("a", 2.0**-16, "f16") + "%r = math.div %x, %a",
        *("f16", 2.0**-20, 2.0**-4),
        id="x / 2**-16 becomes x * inf in f16",
    ),
    pytest.param(
        const("a", 2.0**-149) + "%r = math.div %x, %a",
        *("f32", 2.0**-149, 1.0),
        id="x / 2**-149 becomes x * inf in f32",
    ),
]


@pytest.mark.parametrize(("body", "dtype", "x", "wanted"), CHANGED)
def test_constants_are_numbers_of_their_dtype(
    body: str, dtype: str, x: float, wanted: float
) -> None:
    module, given = program(body, dtype), np.array([x])
    (before,) = evaluate(module, given, given, C[:1])
    (after,) = evaluate(canonicalise(module), given, given, C[:1])
    np.testing.assert_allclose(before, wanted, rtol=1e-6)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_scaling_moves_into_a_mask() -> None:
    body = const("no", "-inf") + TWO + "%s = math.select %c, %x, %no\n%r = math.mul %s, %two"
    module = canonicalise(program(body))
    select = module.main.body.ops[-1]
    assert select.name == "math.select"
    np.testing.assert_array_equal(evaluate(module, X, X, C)[0], evaluate(program(body), X, X, C)[0])


def test_effects_and_their_order_stay() -> None:
    text = """tile f(%o: buffer<4 x f32, unit 0>) with {grid = [[1, 1]], outputs = 1} {
      %c0 = math.const {value = 0, type = index}
      %c4 = math.const {value = 4, type = index}
      tile.for %c0, %c4 {step = 1} (%i: index) {
        %a = math.const {value = 1.0, type = reg<1 x 1 x f32, local(1, 1)>}
        %b = math.const {value = 1.0, type = reg<1 x 1 x f32, local(1, 1)>}
        %j = math.mul %i, %c0
        %k = math.add %i, %j
        tile.store %a, %o, %k {dims = [-1]}
        tile.store %b, %o, %i {dims = [-1]}
        yield
      }
      return }"""
    module = canonicalise(parse(text))
    names = [op.name for op in module.main.body.walk()]
    assert names.count("tile.store") == 2
    assert "math.mul" not in names and "math.add" not in names
    np.testing.assert_array_equal(evaluate(module)[0], np.ones(4))


def test_sharing_stops_at_regions() -> None:
    """What one branch computes is not there in the next."""
    text = """tile f(%i: index, %o: buffer<2 x f32, unit 0>) with {grid = [[1, 1]], outputs = 1} {
      %one = math.const {value = 1.0, type = reg<1 x 1 x f32, local(1, 1)>}
      tile.if %i, %i () { %p = math.add %i, %i tile.store %one, %o, %p {dims = [-1]} yield }
      tile.if %i, %i () { %q = math.add %i, %i tile.store %one, %o, %q {dims = [-1]} yield }
      return }"""
    module = canonicalise(parse(text))
    assert parse(str(module)) == module


def test_a_folded_cast_rounds_what_it_casts() -> None:
    body = const("a", 0.3, "bf16") + "%b = math.cast %a {dtype = f32}\n%r = math.mul %x, %b"
    module, given = program(body), np.ones(1)
    (before,) = evaluate(module, given, given, C[:1])
    (after,) = evaluate(canonicalise(module), given, given, C[:1])
    assert before == after == 0.30078125


@pytest.mark.parametrize("source", ["f32", "f16", "i32", "bool"])
@pytest.mark.parametrize("to", ["f32", "bf16", "f16", "i8", "i32", "i64", "bool"])
@pytest.mark.parametrize("value", [0.0, 0.7, -1.3, 100.9, 70000.0])
def test_casts_of_constants_give_what_they_gave(source: str, to: str, value: float) -> None:
    """A float that becomes a float is folded and rounds to it; whatever becomes an integer or a
    truth value, or was one, is left to be cast."""
    floats = source.startswith("f"), to.startswith(("f", "bf"))
    if (abs(value) > 127 and to == "i8") or (abs(value) > 65504 and "f16" in (source, to)):
        value = 0.5  # no number of that dtype
    text = str(bool(value)).lower() if source == "bool" else value if floats[0] else int(value)
    module = program(const("a", text, source) + f"%r = math.cast %a {{dtype = {to}}}")
    after = canonicalise(module)
    casts = 0 if source == to or all(floats) else 1
    assert ops(after).count("math.cast") == casts and parse(str(after)) == after
    given = X[:3], X[:3], C[:3]
    (want,), (got,) = evaluate(module, *given), evaluate(after, *given)
    assert want.dtype == got.dtype
    np.testing.assert_array_equal(got, want)


def test_folding_goes_on_until_nothing_changes() -> None:
    """The scale moves before the mask, then meets the scale that is there already."""
    body = const("a", 0.125) + TWO + const("no", "-inf")
    body += "%p = math.mul %x, %a\n%s = math.select %c, %p, %no\n%r = math.mul %s, %two"
    once = canonicalise(program(body))
    assert canonicalise(once) == once
