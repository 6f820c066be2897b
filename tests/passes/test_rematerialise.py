"""Products of products in the cheaper order, and what to keep of a layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.core import Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import evaluate
from tilewright.ir.ops_remake import Remake
from tilewright.ir.ops_tensor import Contract
from tilewright.ir.parser import parse
from tilewright.ir.sizes import Size
from tilewright.ir.target import named_target
from tilewright.passes.rematerialise import (
    ABSORBED,
    FUSED,
    KEYS_AND_VALUES,
    REMADE,
    Balance,
    Layer,
    absorb,
    fuse,
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


@given(*(st.integers(1, 9) for _ in range(5)), st.integers(1, 4))
@settings(max_examples=40)
def test_making_again_changes_no_value(h: int, n: int, m: int, c: int, d: int, share: int) -> None:
    """What is left for the caller included; keys are made again, values too or absorbed, as costs
    fewer multiply-adds if every ``share`` rows make their own."""
    sizes = {"H": h, "N": n, "M": m, "C": c, "D": d}
    module = parse(ATTENTION)
    fused = fuse(module.main, Size.of("M"), sizes, share)
    rng = np.random.default_rng(0)
    shapes = {"q": (h, n, d), "x": (m, c), "wk": (h, d, c), "wv": (h, d, c)}
    given_ = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    (want,) = evaluate(module, *given_.values(), precision="f64")
    inputs = [given_[p.hint] for p in fused.graph.params]
    (got,) = evaluate(Module((fused.graph,)), *inputs, precision="f64")
    (last,) = fused.last
    made = [op for op in fused.graph.body.ops if isinstance(op, Remake)]
    passes = -(-n // share)
    weighed = h * n * c * (m + d) < h * m * d * (n + passes * c)
    assert len(made) == (1 if weighed else 2) and (last is not None) == weighed
    if last is not None:
        assert last.weights == "wv" and "wv" not in [p.hint for p in fused.graph.params]
        got = np.einsum(last.equation, got, given_["wv"])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_rotated_keys_are_made_again_and_what_rows_bring_is_not() -> None:
    """Only products along the tokens, and none that is a result: it has to be in memory."""
    turned = "%k = tensor.roll %raw {axis = 2, shift = 3}\n  %v"
    text = ATTENTION.replace("%k = tensor.contract", "%raw = tensor.contract")
    text = text.replace("%v", turned, 1).replace("<H, N, M, C, D>", "<H, N, M, C>")
    text = text.replace(" x D ", " x 8 ")
    query = '%a = tensor.contract %q, %turn {equation = "hnd,de->hne"}\n  %s'
    text = text.replace("%s", query, 1).replace("contract %q, %k", "contract %a, %k")
    text = text.replace("(%q", "(%turn: tensor<8 x 8 x f32>, %q")
    sizes = {"H": 4, "N": 1, "M": 1000, "C": 64}
    fused = fuse(parse(text).main, Size.of("M"), sizes, 48)
    assert [op.result.hint for op in fused.graph.body.ops if isinstance(op, Remake)] == ["raw"]
    kept = parse(text.replace("return %o", "return %o, %raw")).main
    ops = fuse(kept, Size.of("M"), sizes, 48).graph.body.ops
    assert not any(isinstance(op, Remake) for op in ops)


MHA = Layer(4096, 32, 32, 128, 4.5, 4.5, 4.5, rotated=False)
GQA = Layer(4096, 32, 8, 128, 4.5, 4.5, 4.5, rotated=True)
HOST = Balance.of(named_target("x86-64-v4"))


def test_the_input_is_half_of_keys_and_values_with_as_many_heads() -> None:
    costs = MHA.costs(1, 1000)
    assert costs[REMADE].kept == costs[ABSORBED].kept == costs[KEYS_AND_VALUES].kept / 2
    assert costs[FUSED].kept == costs[REMADE].kept
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


def test_few_rows_make_keys_in_the_kernel_and_many_once_through_memory() -> None:
    """Every 48 rows of a key head would make their own."""
    ways = {FUSED, REMADE}
    for layer in (GQA, Layer(1024, 16, 4, 64)):
        chosen = [layer.choose(n, 4096, HOST, None, ways) for n in (1, 8, 32, 512, 4096)]
        assert chosen == sorted(chosen)  # fused, then remade
        assert chosen[0] == FUSED and chosen[-1] == REMADE
    one, more = (GQA.costs(n, 4096)[FUSED].multiply_adds for n in (12, 13))
    assert more > 1.7 * one  # 13 queries of 4 heads do not fit into one work item


def test_the_table_names_every_way_and_what_keeps_too_much() -> None:
    table = GQA.table(1, 4096, HOST, 2200.0).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [KEYS_AND_VALUES, FUSED, REMADE]
    assert "more than 2200" in table[2] and "more than" not in table[1]
