"""A row alone is computed as one of many: the same tile program but for the number of rows."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.target import named_target
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile.kernel_info import is_routing
from tilewright.passes.to_tile.lower import kernel_to_tile, prepared

NORM = """
graph norm<N>(%x: tensor<N x 1 x 37 x f32>, %w: tensor<37 x f32>) {
  %c = math.const {value = 0.5, type = tensor<f32>}
  %s = math.mul %x, %x
  %r = tensor.reduce %s {kind = "sum", axis = 2, keep = true}
  %i = tensor.iota {axis = 2, type = tensor<1 x 1 x 37 x i64>}
  %p = math.cast %i {dtype = f32}
  %a = math.add %r, %c
  %y = math.div %x, %a
  %z = math.mul %y, %w
  %o = math.add %z, %p
  return %o
}
"""


def alone(text: str) -> str:
    return text.replace("N x", "1 x").replace("<N>", "")


@pytest.mark.parametrize("order", ["", "batch", "fixed"])
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_a_row_alone_has_the_bits_of_a_row_among_many(target: str, order: str) -> None:
    x = np.random.default_rng(2).standard_normal((5, 1, 37)).astype(np.float32)
    w = np.linspace(-1, 1, 37, dtype=np.float32)
    one, many = (
        kernel_to_tile(
            run_passes(parse(text), TO_KERNELS).main,
            named_target(target),
            0,
            {"x": 2, "w": 0},
            order=order,
        )
        for text in (alone(NORM), NORM)
    )
    (whole,) = evaluate_graph(many, x, w)
    for row in range(5):
        (got,) = evaluate_graph(one, x[row : row + 1], w)
        np.testing.assert_array_equal(got, whole[row : row + 1])


def test_what_has_no_row_stays_as_it_is() -> None:
    """A vector, along whose tensors nothing is left for a row to lie."""
    for shape, routing in (("1 x 37", False), ("37", True)):
        axis = shape.count("x")
        text = f"""graph f(%x: tensor<{shape} x f32>) {{
        %r = tensor.reduce %x {{kind = "sum", axis = {axis}, keep = true}}
        %y = math.mul %x, %r
        return %y }}"""
        assert is_routing(prepared(run_passes(parse(text), TO_KERNELS).main)) == routing


ATTENTION = """
graph attend<N, M>(%q: tensor<N x 8 x f32>, %k: tensor<M x 8 x f32>, %v: tensor<M x 8 x f32>) {
  %s = tensor.contract %q, %k {equation = "nd,md->nm"}
  %p = tensor.softmax %s {axis = 1}
  %o = tensor.contract %p, %v {equation = "nm,me->ne"}
  return %o
}
"""


def test_a_query_alone_is_streamed() -> None:
    """It runs in a loop of one turn: what waits for a maximum waits between loops."""
    text = ATTENTION.replace("N x", "1 x").replace("<N, M>", "<M>")
    (one,), (many,) = (run_passes(parse(x), TO_KERNELS).graphs for x in (text, ATTENTION))
    assert [op.name for op in one.body.ops] == [op.name for op in many.body.ops]
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((n, 8)) for n in (1, 9, 9))
    found = [evaluate_graph(x, q, k, v, precision="f64")[0] for x in (one, many)]
    np.testing.assert_array_equal(*found)
