"""Products of tokens with the gate as tile programs: which form, and its results beside float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.stages import TARGETS
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate, evaluate_graph
from tilewright.ir.parser import parse
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.routing.info import FEW_PRODUCT

MANY = """graph many<T>(%x: tensor<T x {0} x f32>, %gate: tensor<{1} x {0} x f32>) {{
  %logits = tensor.contract %x, %gate {{equation = "th,eh->te"}}
  %v, %ids = tensor.top_k %logits {{k = 1, ties = "torch"}}
  return %logits, %v
}}"""
ONE = """graph one(%x: tensor<{0} x f32>, %gate: tensor<{1} x {0} x f32>) {{
  %logits = tensor.contract %x, %gate {{equation = "h,eh->e"}}
  %v, %ids = tensor.top_k %logits {{k = 1, ties = "torch"}}
  return %logits, %v
}}"""


def tile(text: str, target: str, rows: int) -> Graph:
    kernel = run_passes(parse(text), TO_KERNELS).main
    units = {p.hint: len(p.type.shape) - 1 for p in kernel.params}  # type: ignore[union-attr]
    return kernel_to_tile(kernel, TARGETS[target], rows, units)


@pytest.mark.parametrize("target", ["sse", "x86-64-v3", "x86-64-v4"])
def test_few_tokens_have_terms_on_lanes_and_many_lie_on_lanes(target: str) -> None:
    """Where tokens lie on lanes blocks of them are turned over; else a token's lanes are summed."""
    for text, rows in ((text, rows) for text in (MANY, ONE) for rows in (1, 2, 4, 5, 32, 0)):
        few = text == ONE or 0 < rows <= FEW_PRODUCT
        ops = list(tile(text.format(40, 7), target, rows).body.walk())
        assert any(isinstance(op, t.Transpose) for op in ops) == (not few)
        assert any(isinstance(op, t.Reduce) and op.kind == "sum" for op in ops) == few


SHAPES = [(1, 2), (7, 5), (16, 6), (64, 7), (65, 8), (130, 13)]  # terms, experts


@pytest.mark.parametrize(("hidden", "experts"), SHAPES)
@pytest.mark.parametrize("target", ["sse", "x86-64-v3", "x86-64-v4"])
def test_products_of_any_shape(target: str, hidden: int, experts: int) -> None:
    """Terms and experts that fill no vector, chunk or register tile, and tokens that fill no
    block, for every class of tokens."""
    rng = np.random.default_rng(hidden)
    gate = rng.standard_normal((experts, hidden)).astype("f4")
    for tokens, rows in ((1, 4), (3, 4), (1, 0), (9, 0), (None, 0)):
        text = (ONE if tokens is None else MANY).format(hidden, experts)
        x = rng.standard_normal(hidden if tokens is None else (tokens, hidden)).astype("f4")
        wanted = evaluate(parse(text), x, gate, precision="f64")
        for got, want in zip(
            evaluate_graph(tile(text, target, rows), x, gate), wanted, strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
