"""Counts written as sums become one operation, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.passes.canonicalise import canonicalise
from tilewright.passes.raise_counts import raise_counts

SCATTER = """graph f<N>(%ids: tensor<N x i64>, %w: tensor<N x f32>) {
  %c = math.const {value = ZERO, type = tensor<f32>}
  %zeros = tensor.broadcast %c {shape = [5]}
  %one = math.const {value = ONE, type = tensor<i32>}
  %wide = math.cast %one {dtype = f32}
  %ones = tensor.broadcast %wide {shape = [size(N)]}
  %r = tensor.scatter %zeros, %ids, %SOURCE {axis = 0, kind = "KIND"}
  return %r
}"""
HOT = """graph f<N>(%ids: tensor<N x 2 x i64>) {
  %column = tensor.reshape %ids {shape = [size(N), 2, 1]}
  %classes = tensor.iota {axis = 2, type = tensor<1 x 1 x 5 x i64>}
  %is = math.compare %column, %classes {relation = "RELATION"}
  %hot = math.cast %is {dtype = i64}
  %a = tensor.reduce %hot {kind = "sum", axis = AXIS}
  %r = tensor.reduce %a {kind = "sum", axis = 0}
  return %r
}"""


def scatter(zero: str = "0.0", one: str = "1", source: str = "ones", kind: str = "sum") -> str:
    text = SCATTER.replace("ZERO", zero).replace("ONE", one)
    return text.replace("SOURCE", source).replace("KIND", kind)


def hot(relation: str = "eq", axis: str = "1") -> str:
    return HOT.replace("RELATION", relation).replace("AXIS", axis)


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        (scatter(), True),
        (scatter(zero="1.0"), False),
        (scatter(one="2"), False),
        (scatter(source="w"), False),
        (scatter(kind="set"), False),
        (hot(), True),
        (hot("ne"), False),
        (hot(axis="2"), False),  # over the classes: how many ids there are
    ],
)
def test_what_is_a_count(text: str, raised: bool) -> None:
    module = parse(text)
    after = canonicalise(raise_counts(module))
    assert ("tensor.segment_count" in str(after)) == raised

    @given(st.integers(0, 9), st.integers(0, 99))
    @settings(max_examples=15)
    def same(count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = rng.integers(-1, 7, (count, 2))
        given_ = (ids,) if "column" in text else (ids[:, 0], ids[:, 1] * 0.5)
        for before, now in zip(evaluate(module, *given_), evaluate(after, *given_), strict=True):
            assert np.array_equal(before, now) and before.dtype == now.dtype

    same()
