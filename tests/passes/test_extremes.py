"""Maxima and minima of numbers with NaN among them are NaN, as torch's; softmax pays nothing."""

from __future__ import annotations

import shutil
from functools import lru_cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.ir.core import Module
from tilewright.ir.parser import parse
from tilewright.passes.extremes import extremes

TEXT = """graph g<N>(%x: tensor<N x 40 x 3 x {dtype}>) {{
  %out = tensor.reduce %x {{kind = "{kind}", axis = {axis}}} : tensor<{shape} x {dtype}>
  return %out
}}
"""
SHAPES = {0: "40 x 3", 1: "N x 3", 2: "N x 40"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}
SPECIAL = [float("nan"), float("inf"), -float("inf"), -0.0]


@lru_cache
def module(kind: str, axis: int, dtype: str) -> Module:
    return parse(TEXT.format(kind=kind, axis=axis, shape=SHAPES[axis], dtype=dtype))


@lru_cache
def program(kind: str, axis: int, dtype: str, backend: str) -> tilewright.Program:
    return tilewright.Program(module(kind, axis, dtype), backend=backend)


def agrees(made: tilewright.Program, kind: str, axis: int, x: torch.Tensor) -> bool:
    (got,) = made(x)
    want = (x.amax if kind == "max" else x.amin)(axis)
    return got.dtype == want.dtype and torch.equal(got.nan_to_num(7.5), want.nan_to_num(7.5))


@pytest.mark.parametrize("backend", ["mlir", "numba"])
@settings(max_examples=60, deadline=None)
@example("max", 1, "f32", [(5, 0), (59, 1), (119, 2)])
@given(
    st.sampled_from(["max", "min"]),
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.tuples(st.integers(0, 599), st.integers(0, len(SPECIAL) - 1)), max_size=40),
)
def test_as_torch_says(
    backend: str, kind: str, axis: int, dtype: str, places: list[tuple[int, int]]
) -> None:
    x = torch.randn(5 * 40 * 3)
    for place, which in places:
        x[place] = SPECIAL[which]
    x = x.view(5, 40, 3).to(DTYPES[dtype])
    assert agrees(program(kind, axis, dtype, backend), kind, axis, x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("kind", ["max", "min"])
def test_on_a_gpu(kind: str) -> None:
    x = torch.randn(5, 40, 3)
    x[1, 7, 0] = x[2, :, 1] = float("nan")
    assert agrees(program(kind, 1, "f32", "cuda-host"), kind, 1, x)


def test_compiled_functions_hide_no_nan() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().amax(-1, keepdim=True)

    x = torch.randn(64, 256)
    x[3, 17] = float("nan")
    with torch.no_grad():
        got = tilewright.compile(scaled)(x)
    assert got[3].isnan().all() and not got[[i for i in range(64) if i != 3]].isnan().any()


BY_HAND = """graph g<N>(%x: tensor<N x 40 x f32>) {
  %top = tensor.reduce %x {kind = "max", axis = 1, keep = true} : tensor<N x 1 x f32>
  %less = math.sub %x, %top : tensor<N x 40 x f32>
  %e = math.exp %less : tensor<N x 40 x f32>
  %sum = tensor.reduce %e {kind = "sum", axis = 1, keep = true} : tensor<N x 1 x f32>
  %out = math.div %e, %sum : tensor<N x 40 x f32>
  return %out, %top
}
"""


def test_exponentials_show_a_nan_by_themselves() -> None:
    written = parse(BY_HAND)
    assert len(extremes(written).main.body.ops) == len(written.main.body.ops)
    alone = module("max", 1, "f32")
    assert len(extremes(alone).main.body.ops) > len(alone.main.body.ops)
    x = torch.randn(9, 40)
    x[4, 4] = float("nan")
    out, _ = tilewright.Program(written)(x)
    assert out[4].isnan().all() and not out[:4].isnan().any()


def test_what_a_mask_hides_is_no_nan() -> None:
    text = """graph g<N, M>(%x: tensor<N x M x f32>, %d: tensor<M x i64>) {
      %i = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
      %j = tensor.gather %d, %i
      %row = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
      %k = tensor.gather %d, %row
      %c = math.compare %j, %k {relation = "eq"}
      %never = math.const {value = -inf, type = tensor<f32>}
      %s = math.select %c, %x, %never
      %out = tensor.reduce %s {kind = "max", axis = 1}
      return %out
    }"""
    x, d = torch.randn(70, 70), torch.arange(70) // 9
    x[3, 5] = x[20, 60] = x[40, 0] = float("nan")  # seen, hidden, hidden
    (got,) = tilewright.Program(parse(text))(x, d)
    want = torch.where(d[:, None] == d, x, -torch.inf).amax(1)
    assert torch.equal(got.nan_to_num(7.5), want.nan_to_num(7.5)) and got.isnan().sum() == 1
