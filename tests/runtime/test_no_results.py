"""Calls whose results have no elements: they give tensors of the right shapes, and no kernel is
made for rows of none."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.fake_gpu import fake_gpu
from tilewright.ir.errors import BindError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

BACKENDS = ("mlir", "numba", "interpreter")
PRODUCT = """graph product<M, N>(%x: tensor<M x 8 x f32>, %w: tensor<8 x N x f16>) {
  %sum = tensor.reduce %x {kind = "sum", axis = -1, keep = true}
  %scaled = math.mul %x, %sum
  %narrow = math.cast %scaled {dtype = f16}
  %y = tensor.contract %narrow, %w {equation = "mk,kn->mn"}
  return %y
}"""
ROLL = """graph rolled<N>(%x: tensor<N x 0 x f32>) {
  %y = tensor.roll %x {axis = 1, shift = 0}
  %r = math.neg %y
  return %r
}"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 0), (0, 0), (0, 3), (2, 3)])
def test_products_without_columns(backend: str, rows: int, columns: int) -> None:
    program = Program(parse(PRODUCT), backend=backend)
    x, w = torch.randn(rows, 8), torch.randn(8, columns).half()
    (y,) = program(x, w)
    want = (x.double() * x.double().sum(-1, keepdim=True)) @ w.double()
    assert y.shape == (rows, columns) and y.dtype == torch.float16
    assert torch.allclose(y.double(), want, rtol=1e-2, atol=2e-2)
    with pytest.raises(BindError):
        program(x, w[:7])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_no_elements(backend: str) -> None:
    (y,) = Program(parse(ROLL), backend=backend)(torch.zeros(3, 0))
    assert y.shape == (3, 0) and y.dtype == torch.float32


def test_calls_on_a_gpu_that_come_again() -> None:
    pytest.importorskip("triton")
    with fake_gpu():
        program = Program(parse(ROLL))
        for _ in range(5):
            assert program(torch.zeros(3, 0))[0].shape == (3, 0)
