"""Attention under random masks made of positions and a table, through machine code: what is
skipped, taken whole or masked must not show in the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integer_expressions import Expression, conditions
from tilewright.ir.evaluate import evaluate
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program

HEAD = """graph f<H, N, M, T>(%q: tensor<H x N x 8 x f32>, %k: tensor<H x M x 8 x f32>,
    %v: tensor<H x M x 8 x f32>, %table: tensor<T x i64>) {
  %s = tensor.contract %q, %k {equation = "hnd,hmd->hnm"}
  %zero = math.const {value = 0, type = tensor<i64>}
  %n = tensor.iota {axis = 0, type = tensor<N x 1 x i64>}
  %m = tensor.iota {axis = 1, type = tensor<1 x M x i64>}
  %never = math.const {value = -inf, type = tensor<f32>}
"""
TAIL = """
  %t = math.select %seen, %s, %never
  %p = tensor.softmax %t {axis = 2, safe = true}
  %o = tensor.contract %p, %v {equation = "hnm,hme->hne"}
  return %o
}"""


def check(mask: str, shape: tuple[int, int, int], table: np.ndarray, target: str | None) -> None:
    """The kernel's result against float64 of the tensor program."""
    module = parse(HEAD + mask + TAIL)
    program = Program(module, target=target)
    assert program.supported, program.steps[0].reason
    rng = np.random.default_rng(0)
    heads, rows, keys = shape
    q, k, v = (rng.standard_normal((heads, n, 8)).astype("f4") for n in (rows, keys, keys))
    (got,) = program(*(torch.from_numpy(x) for x in (q, k, v, table)))
    (want,) = evaluate(module, q, k, v, table, precision="f64")
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)


def numbers() -> st.SearchStrategy[int]:
    """Lengths around the sizes of blocks and register tiles."""
    return st.integers(1, 20) | st.integers(40, 56) | st.integers(120, 300)


@pytest.mark.parametrize("target", [None, "x86-64-v3"])
@given(
    conditions(),
    st.tuples(st.integers(1, 2), numbers(), numbers()),
    st.integers(1, 80),
    st.integers(0, 3),
)
@settings(max_examples=12, deadline=None)
def test_random_masks(
    target: str | None,
    mask: Expression,
    shape: tuple[int, int, int],
    run: int,
    seed: int,
) -> None:
    """``run`` is the length of the stretches in which the table's numbers repeat."""
    rng = np.random.default_rng(seed)
    table = np.repeat(rng.integers(-5, 9, max(shape) // run + 1), run)[: max(shape)]
    check(mask.lines("seen"), shape, table, target)


SAME = """%a = tensor.gather %table, %n
%b = tensor.gather %table, %m
%seen = math.compare %a, %b {relation = "eq"}"""


@pytest.mark.parametrize("length", [1, 47, 48, 49, 127, 128, 129, 1000, 2500])
def test_documents_of_every_length(length: int) -> None:
    """Documents that end within and between blocks, stretches of blocks of others in between."""
    rng = np.random.default_rng(length)
    table = np.repeat(np.arange(length), rng.integers(1, 90, length))[:length]
    check(SAME, (1, length, length), table, None)
    check(SAME, (1, length, length), table[::-1].copy(), None)


def test_documents_that_come_back() -> None:
    table = np.arange(700) // 30 % 3
    check(SAME, (2, 700, 700), table, None)


def test_numbers_at_the_ends_of_their_range() -> None:
    """Sentinels such as the largest integer must not overflow a comparison of intervals."""
    ends = np.array([np.iinfo(np.int64).max, -1, np.iinfo(np.int64).min, 0, 1 << 62, -(1 << 62)])
    check(SAME, (1, 300, 300), np.repeat(ends, 50), None)
    check(SAME.replace('"eq"', '"le"'), (1, 300, 300), np.repeat(ends, 50), None)


def test_a_table_shorter_than_the_keys_repeats_its_last() -> None:
    check(SAME, (1, 100, 300), np.arange(50) // 20, None)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_few_rows(rows: int) -> None:
    """The schedules that keep rows in registers skip as well."""
    check(SAME, (1, rows, 700), np.arange(700) // 100, None)


@pytest.mark.parametrize("backend", ["numba", "interpreter"])
def test_other_back_ends(backend: str) -> None:
    module = parse(HEAD + SAME + TAIL)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 8)).astype("f4") for n in (37, 90, 90))
    table = np.arange(90) // 17
    (got,) = Program(module, backend=backend)(*(torch.from_numpy(x) for x in (q, k, v, table)))
    (want,) = evaluate(module, q, k, v, table, precision="f64")
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5, atol=2e-5)
