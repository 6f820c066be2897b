"""Products of products in the cheaper order, and what to keep of a layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.rematerialise import (
    ABSORBED,
    KEYS_AND_VALUES,
    REMADE,
    Balance,
    Layer,
    absorb,
)

ATTENTION = """graph f<H, N, M, C, D>(%q: tensor<H x N x D x f32>, %x: tensor<M x C x f32>,
    %wk: tensor<H x D x C x f32>, %wv: tensor<H x D x C x f32>) {
  %k = tensor.contract %x, %wk {equation = "mc,hdc->hmd"}
  %v = tensor.contract %x, %wv {equation = "mx,hyx->hmy"}
  %s = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
  %p = tensor.softmax %s {axis = 2}
  %o = tensor.contract %p, %v {equation = "hnm,hme->hne"}
  return %o
}"""


def work(module: Module, sizes: dict[str, int]) -> int:
    """Multiply-adds of all products, counted from their letters."""
    total = 0
    for op in module.main.body.ops:
        if isinstance(op, Contract):
            left, right, _ = op.letters()
            extents = dict(zip(left, op.lhs.type.shape, strict=True))  # type: ignore[union-attr]
            extents |= dict(zip(right, op.rhs.type.shape, strict=True))  # type: ignore[union-attr]
            total += int(np.prod([s.evaluate(sizes) for s in extents.values()]))
    return total


@given(*(st.integers(1, 9) for _ in range(5)))
@settings(max_examples=40)
def test_absorbing_changes_no_value_and_saves_work(h: int, n: int, m: int, c: int, d: int) -> None:
    sizes = {"H": h, "N": n, "M": m, "C": c, "D": d}
    module = parse(ATTENTION)
    after = Module((absorb(module.main, sizes),))
    rng = np.random.default_rng(0)
    given_ = [rng.standard_normal(s) for s in ((h, n, d), (m, c), (h, d, c), (h, d, c))]
    (want,) = evaluate(module, *given_, precision="f64")
    (got,) = evaluate(after, *given_, precision="f64")
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    assert work(after, sizes) <= work(module, sizes)
    assert absorb(after.main, sizes) is after.main


def test_one_query_absorbs_both_projections() -> None:
    sizes = {"H": 4, "N": 1, "M": 1000, "C": 64, "D": 16}
    after = absorb(parse(ATTENTION).main, sizes)
    equations = [op.equation for op in after.body.ops if isinstance(op, Contract)]
    assert len(equations) == 4 and after.results[0].hint == "o"
    products = [set(op.operands) for op in after.body.ops if isinstance(op, Contract)]
    x = after.params[1]
    assert sum(x in operands for operands in products) == 2  # and never beside a weight
    assert all(not operands <= set(after.params) or x not in operands for operands in products)


def test_many_queries_do_not() -> None:
    graph = parse(ATTENTION).main
    assert absorb(graph, {"H": 4, "N": 5000, "M": 1000, "C": 64, "D": 16}) is graph


def test_a_product_that_others_read_stays() -> None:
    text = ATTENTION.replace("return %o", "return %o, %k")
    graph = parse(text).main
    after = absorb(graph, {"H": 4, "N": 1, "M": 1000, "C": 64, "D": 16})
    assert [v.hint for v in after.results] == ["o", "k"]
    assert sum(isinstance(op, Contract) for op in after.body.ops) == 4


MHA = Layer(4096, 32, 32, 128, 4.5, 4.5, 4.5, rotated=False)
GQA = Layer(4096, 32, 8, 128, 4.5, 4.5, 4.5, rotated=True)
HOST = Balance.of(named_target("x86-64-v4"))


def test_the_input_is_half_of_keys_and_values_with_as_many_heads() -> None:
    costs = MHA.costs(1, 1000)
    assert costs[REMADE].kept == costs[ABSORBED].kept == costs[KEYS_AND_VALUES].kept / 2
    assert GQA.costs(1, 1000)[REMADE].kept == 2 * GQA.costs(1, 1000)[KEYS_AND_VALUES].kept


def test_arithmetic_decides_without_a_limit_and_memory_with_one() -> None:
    assert MHA.choose(1, 16384, HOST) == KEYS_AND_VALUES
    less = MHA.costs(1, 1)[ABSORBED].kept
    assert MHA.choose(1, 16384, HOST, less) == ABSORBED
    assert GQA.choose(1, 16384, HOST) == KEYS_AND_VALUES
    plenty = Balance(1e18, 1e9)  # arithmetic for nothing: bytes alone count
    assert MHA.choose(1, 16384, plenty) in (ABSORBED, REMADE)


def test_rotated_keys_cannot_be_absorbed() -> None:
    assert ABSORBED not in GQA.costs(1, 10)
    with pytest.raises(UnsupportedError, match="take fewer bits"):
        GQA.choose(1, 10, HOST, 100)
