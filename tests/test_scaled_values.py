"""Attention whose values, or keys, are computed with one number of each position (a scale of a
token, a mean that is taken off), for few rows and many, and elements that do not fill vectors."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

TEXT = """graph scaled<N, M>(%q: tensor<N x 4 x f32>, %k: tensor<M x 4 x f32>,
                            %v: tensor<M x E x f32>, %b: tensor<M x 1 x f32>) {
  %changed = math.OP %SIDE, %b
  %s = tensor.contract %q, %KEYS {equation = "nd,md->nm"}
  %p = tensor.softmax %s {axis = 1}
  %o = tensor.contract %p, %VALUES {equation = "nm,me->ne"}
  return %o
}"""


def text_of(op: str, side: str, length: int) -> str:
    keys, values = ("changed", "v") if side == "k" else ("k", "changed")
    found = TEXT.replace("OP", op).replace("SIDE", side).replace("x E x", f"x {length} x")
    return found.replace("KEYS", keys).replace("VALUES", values)


@cache
def program(backend: str, text: str) -> Program:
    return Program(parse(text), backend=backend)


@pytest.mark.parametrize("backend", ["mlir", "interpreter"])
@settings(max_examples=6)
@given(
    op=st.sampled_from(["sub", "mul"]),
    side=st.sampled_from("kv"),
    length=st.sampled_from([3, 16, 20]),
    rows=st.sampled_from([1, 5, 17]),
    keys=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_a_number_of_each_position(
    backend: str, op: str, side: str, length: int, rows: int, keys: int, seed: int
) -> None:
    text, draw = text_of(op, side, length), torch.Generator().manual_seed(seed)
    shapes = (rows, 4), (keys, 4), (keys, length), (keys, 1)
    inputs = [torch.randn(shape, generator=draw) for shape in shapes]
    (got,) = program(backend, text)(*inputs)
    (want,) = evaluate(parse(text), *(x.double().numpy() for x in inputs), precision="f64")
    assert float((got.double() - torch.from_numpy(want)).abs().max()) < 1e-5
