"""The interpreter at the tensor level against NumPy, in double precision and in each dtype."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import SPECIAL, AttentionShape, attention_programs, attention_shapes
from tilewright.ir.dtypes import BF16, F16, TABLE
from tilewright.ir.errors import BindError, EvaluationError, TilewrightError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse

ATTENTION = """
graph attention<H, N, M>(%q: tensor<H x N x 3 x f32>, %k: tensor<H x M x 3 x f32>,
                         %v: tensor<H x M x 2 x f32>, %mask: tensor<N x M x bool>) {
  %s = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
  %c = math.const {value = 0.5, type = tensor<f32>}
  %scaled = math.mul %s, %c
  %least = math.const {value = -inf, type = tensor<f32>}
  %masked = math.select %mask, %scaled, %least
  %p = tensor.softmax %masked {axis = -1, safe = true}
  %o = tensor.contract %p, %v {equation = "hnm,hmd->hnd"}
  return %o
}
"""


def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Row by row, as one would write it down."""
    out = np.zeros((*q.shape[:2], v.shape[2]))
    for h in range(q.shape[0]):
        for n in range(q.shape[1]):
            weights = np.array([np.exp(0.5 * q[h, n] @ x) for x in k[h]]) * mask[n]
            total = weights.sum()
            out[h, n] = sum(w * x for w, x in zip(weights, v[h], strict=True)) if total else 0.0
            out[h, n] /= total or 1.0
    return out


@given(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=60)
def test_attention_is_attention(h: int, n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(s) for s in ((h, n, 3), (h, m, 3), (h, m, 2)))
    mask = rng.random((n, m)) < 0.6
    (got,) = evaluate(parse(ATTENTION), q, k, v, mask, precision="f64")
    np.testing.assert_allclose(got, attention(q, k, v, mask), rtol=1e-12, atol=1e-12)


@given(st.data(), attention_shapes())
@settings(max_examples=30)
def test_precision_f64_computes_in_doubles(data: st.DataObject, shape: AttentionShape) -> None:
    """Oracle and plain run differ by f32's rounding, and the oracle is no rounded number."""
    program = data.draw(attention_programs(shape=shape, score_steps=["scale", "bias"]))
    exact, plain = program.run(), program.run(precision=None)
    assert exact[0].dtype == np.float64 and plain[0].dtype == np.float32
    np.testing.assert_allclose(plain[0], exact[0], rtol=1e-4, atol=1e-4)


def run(body: str, *inputs: Any, shape: str = "N", dtype: str = "f32", **options: Any) -> Any:
    params = ", ".join(f"%{'xyz'[i]}: tensor<{shape} x {dtype}>" for i in range(len(inputs)))
    text = f"graph f<N>({params}) {{ {body} return %o }}"
    return evaluate(parse(text), *inputs, **options)[0]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_every_result_is_rounded_to_its_dtype(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 500))
    table = TABLE[dtype]
    a, b = np.float64(table.round(x)), np.float64(table.round(y))
    for op, exact in (("add", a + b), ("mul", a * b), ("div", a / b)):
        got = run(f"%o = math.{op} %x, %y", x, y, dtype=dtype)
        # the host computes in f32: its rounding may come first, half a last place of it
        np.testing.assert_allclose(got, exact, rtol=table.epsilon * 0.5001 + 2.0**-23)
        np.testing.assert_array_equal(table.round(got), got)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_sums_of_narrow_floats_are_kept_wide(dtype: Any) -> None:
    x = np.full(4096, 1.0)
    assert run('%o = tensor.contract %x, %x {equation = "n,n->"}', x, dtype=str(dtype)) == 4096
    assert run('%o = tensor.reduce %x {kind = "sum", axis = 0}', x, dtype=str(dtype)) == 4096


def test_inputs_are_rounded_to_the_parameters_dtype() -> None:
    assert run("%o = math.neg %x", np.array([1.001]), dtype="bf16") == -1
    assert run("%o = math.neg %x", np.array([1.001]), dtype="bf16", precision="f64") == -1.001


@pytest.mark.parametrize("value", SPECIAL)
def test_special_values_pass_through(value: float) -> None:
    got = run("%o = math.abs %x", np.array([value]), precision="f64")
    np.testing.assert_array_equal(got, np.abs([value]))


def test_softmax_of_rows_that_are_minus_infinity() -> None:
    x = np.full(3, -np.inf)
    assert np.isnan(run("%o = tensor.softmax %x {axis = 0}", x)).all()
    assert (run("%o = tensor.softmax %x {axis = 0, safe = true}", x) == 0).all()


def test_empty_reductions_give_the_identity() -> None:
    x = np.zeros(0)
    for kind, identity in (("sum", 0), ("max", -np.inf), ("min", np.inf)):
        assert run(f'%o = tensor.reduce %x {{kind = "{kind}", axis = 0}}', x) == identity


def test_several_results_and_graphs() -> None:
    module = parse("graph f<N>(%x: tensor<N x f32>) { return %x, %x }\ngraph g() { return }")
    assert len(evaluate(module, np.ones(2))) == 2


def test_wrong_inputs_are_bind_errors() -> None:
    with pytest.raises(BindError, match=r"%x.*has 1 dimensions.*has 2"):
        run("%o = math.neg %x", np.ones((2, 3)))


TILE = """tile f<N>(%x: buffer<N x f32, unit 0>, %o: buffer<N x f32, unit 0>)
with {grid = [[size(N), 4]], outputs = 1} {
  %block = tile.block {dim = 0}
  %four = math.const {value = 4, type = index}
  %at = math.mul %block, %four
  %n = tile.size {size = size(N)}
  LOAD
  STORE
  return
}"""
LOAD = '%t = tile.load %x, %at, %n {dims = [1], bounds = [[1, "zero"]], layout = spatial(1, 4)}'
STORE = 'tile.store %t, %o, %at, %n {dims = [1], bounds = [[1, "zero"]]}'


def run_tile(load: str, store: str, size: int) -> Any:
    text = TILE.replace("LOAD", load).replace("STORE", store)
    return evaluate(parse(text), np.arange(size) + 1.0)[0]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 11])
def test_tile_programs_run_every_work_item(size: int) -> None:
    np.testing.assert_array_equal(run_tile(LOAD, STORE, size), np.arange(size) + 1.0)


@pytest.mark.parametrize(
    ("load", "store", "message"),
    [
        (
            LOAD.replace(', bounds = [[1, "zero"]]', "").replace(", %n", ""),
            STORE,
            "tile.load: index",
        ),
        (
            LOAD,
            STORE.replace(', bounds = [[1, "zero"]]', "").replace(", %n", ""),
            "tile.store: index",
        ),
        (LOAD, "", "part of the output %o is not written"),
        (
            "%s = tile.alloc {type = scratch<1 x 4 x f32>}\n"
            "%zero = math.const {value = 0, type = index}\n"
            "%t = tile.load %s, %zero, %zero {dims = [0, 1], layout = spatial(1, 4)}",
            *(STORE, "reads scratch that nothing wrote"),
        ),
    ],
)
def test_mistakes_of_tile_programs_are_seen(load: str, store: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        run_tile(load, store, 5)


CRASHES = [
    ("%o = math.neg %x", [np.array([True])], "bool"),
    ("%o = math.pow %x, %y", [np.array([2]), np.array([-1])], "i64"),
    ('%o = tensor.reduce %x {kind = "max", axis = 0}', [np.zeros(0, int)], "i64"),
    ("%o = tensor.iota {axis = 0, type = tensor<Q x i64>}", [np.array([1])], "i64"),
    ('%o = tensor.contract %x, %y {equation = "n,n->nn"}', [np.ones(2), np.ones(2)], "f32"),
]


@pytest.mark.parametrize(("body", "inputs", "dtype"), CRASHES)
def test_what_has_no_meaning_is_our_error(body: str, inputs: list[Any], dtype: str) -> None:
    with suppress(TilewrightError):
        run(body, *inputs, dtype=dtype)


def test_remainder_of_floats() -> None:
    with suppress(TilewrightError):
        assert run("%o = math.mod %x, %y", np.array([7.5]), np.array([2.0])) == 1.5


def test_a_constant_has_the_shape_of_its_type() -> None:
    try:
        got = run("%o = math.const {value = 1.0, type = tensor<4 x f32>}", np.zeros(1))
    except TilewrightError:
        return
    assert got.shape == (4,)


def test_a_tile_program_without_a_grid() -> None:
    with suppress(TilewrightError):
        evaluate(parse("tile f() { return }"))
