"""What a stream only repeats the interpreter computes, and keeps, once."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.stages import streamed
from tests.strategies import Program, attention_programs
from tilewright.ir import evaluate as interpreter
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Op
from tilewright.ir.evaluate import evaluate_graph, once, repeated
from tilewright.ir.evaluate_work import PRODUCTS, places
from tilewright.ir.parser import parse

LINEAR = """graph linear<M>(%x: tensor<M x 96 x bf16>, %w: tensor<80 x 96 x bf16>) {
  %wide = math.cast %x {dtype = f32}
  %other = math.cast %w {dtype = f32}
  %y = tensor.contract %wide, %other {equation = "mk,nk->mn"}
  return %y
}"""


def kernel(text: str) -> Graph:
    return streamed(parse(text)).main


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_once_and_repeated_are_inverse(axes: list[tuple[int, bool]], seed: int) -> None:
    """Axes of any length, repeated or not."""
    kept = tuple(1 if same and n else n for n, same in axes)
    whole = np.broadcast_to(np.random.default_rng(seed).random(kept), [n for n, _ in axes])
    short = once(whole)
    assert short.size <= max(1, np.prod(kept))
    assert np.array_equal(repeated(short, whole.shape), whole)
    assert repeated(short, whole.shape).shape == whole.shape


def test_a_product_of_matrices_takes_their_memory() -> None:
    """Its streams have 64 times more places."""
    x, w = np.ones((64, 96)), np.ones((80, 96))
    graph = kernel(LINEAR)
    evaluate_graph(graph, x, w)
    tracemalloc.start()
    (y,) = evaluate_graph(graph, x, w, precision="f64")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert y.shape == (64, 80) and (y == 96).all()
    assert most < 8 * 64 * 80 * 96 / 4


class Recorded:
    """``run_op`` that adds up the places of what was computed."""

    def __init__(self) -> None:
        self.run, self.total = interpreter.run_op, 0

    def __call__(self, op: Op, inputs: list[Any], sizes: dict[str, int]) -> tuple[Any, ...]:
        outputs = self.run(op, inputs, sizes)
        self.total += sum(np.size(once(np.asarray(x))) for x in outputs)
        return outputs


def computed(graph: Graph, program: Program) -> int:
    """Places of all arrays that are made while a graph is evaluated."""
    recorded = Recorded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "run_op", recorded)
        evaluate_graph(graph, *program.inputs, precision="f64", sizes=dict(program.sizes))
    return recorded.total


@settings(max_examples=60)
@given(attention_programs())
def test_no_more_is_computed_than_predicted(program: Program) -> None:
    """Reductions and sinks are predicted by what they read."""
    graph = streamed(program.module).graphs[0]
    sizes = bind_sizes(graph, [np.shape(x) for x in program.inputs], dict(program.sizes))
    assert 0 < computed(graph, program) <= places(graph, sizes)


def test_places_of_a_product() -> None:
    """Two matrices, each twice (read and cast), the result twice (summed and written), and a part
    of the multiply-adds."""
    many = {"M": 64}
    once_each = 2 * (64 * 96 + 80 * 96 + 64 * 80)
    assert places(kernel(LINEAR), many) == pytest.approx(once_each + 64 * 80 * 96 / PRODUCTS)


def test_places_of_one_entry_of_a_table() -> None:
    """Which no axis of a loop chooses: the constant, then four arrays at most."""
    text = """graph entry<N>(%x: tensor<N x f32>, %t: tensor<9 x f32>) {
      %at = math.const {value = 2, type = tensor<i64>}
      %entry = tensor.gather %t, %at
      %y = math.mul %x, %entry
      return %y
    }"""
    assert 20 <= places(kernel(text), {"N": 10}) <= 41
