"""Calls whose results have no elements: they give tensors of the right shapes, and no kernel is
made for rows of none."""

from __future__ import annotations

import functools

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
BESIDE = """graph beside<N, M>(%q: tensor<2 x N x D x T>, %k: tensor<2 x M x D x T>,
    %v: tensor<2 x M x E x T>) {
  %scores = tensor.contract %q, %k {equation = "bnd,bmd->bnm"}
  %weights = tensor.softmax %scores {axis = -1}
  %sum = tensor.reduce %weights {kind = "sum", axis = -1}
  %y = tensor.contract %weights, %v {equation = "bnm,bme->bne"}
  return %sum, %y
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
@pytest.mark.parametrize(
    ("dtype", "width", "columns"), [("f32", 8, 0), ("bf16", 8, 0), ("f32", 0, 3)]
)
@pytest.mark.parametrize("rows", [3, 70])
def test_results_with_elements_beside_one_without(
    backend: str, dtype: str, width: int, columns: int, rows: int
) -> None:
    """The kernel runs for the others."""
    names = {" D ": f" {width} ", " E ": f" {columns} ", " T>": f" {dtype}>"}
    text = functools.reduce(lambda all_, name: all_.replace(name, names[name]), names, BESIDE)
    given = [torch.randn(2, rows, width), torch.randn(2, 37, width), torch.randn(2, 37, columns)]
    narrow = torch.bfloat16 if dtype == "bf16" else torch.float32
    total, y = Program(parse(text), backend=backend)(*(x.to(narrow) for x in given))
    torch.testing.assert_close(total.float(), torch.ones(2, rows), rtol=1e-2, atol=0)
    want = (
        given[2].mean(1, keepdim=True).expand(2, rows, columns)
    )  # without a width all count alike
    torch.testing.assert_close(y.float(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["mlir", "numba"])
def test_memory_of_no_size_is_not_read(backend: str) -> None:
    """A vector of it would be: the kernel of the other result takes no part of it."""
    text = """graph f<N>(%x: tensor<N x f32>, %c: tensor<0 x N x f32>) {
      %total = tensor.reduce %x {kind = "sum", axis = 0, keep = true}
      %near = math.div %x, %total
      %y = tensor.contract %c, %near {equation = "bn,n->b"}
      return %y, %total
    }"""
    x = torch.rand(30)
    none, total = Program(parse(text), backend=backend)(x, torch.empty(0, 30))
    assert none.shape == (0,)
    torch.testing.assert_close(total, x.sum(0, keepdim=True))


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
