"""Rows of activations as bytes: against NumPy, for every back end and what f32 cannot divide by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lowbit_programs import (
    Form,
    Weight,
    draw,
    lanes_of,
    program,
    quantised,
    rounding,
    tensors,
)
from tilewright.ir.dtypes import BF16, F16, F32, DType

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WHERE = [("host", "mlir"), ("x86-64-v3", "mlir"), ("scalar", "numba"), ("host", "interpreter")]
SHAPES = [(64, 32), (70, 32), (33, 7), (5, 100), (130, 128), (1, 1)]
POWERS = [-149, -140, -126, -120, -30, 0, 60, 127]


def rows_of(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Rows of all sizes that f32 has, some with zeros only."""
    x = rng.uniform(-1, 1, (count, length))
    x[rng.random((count, length)) < 0.2] = 0
    if count > 2:
        x[2] = 0
    return np.ldexp(x, rng.choice(POWERS, (count, 1))).astype("f4")


def kernel(length: int, group: int, where: tuple[str, str], dtype: DType = F32):
    if where[1] == "numba":
        pytest.importorskip("numba")
    return rounding(length, group, dtype, *where)


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize(("length", "group"), SHAPES)
def test_codes_steps_and_sums(length: int, group: int, where: tuple[str, str]) -> None:
    """The same arithmetic in NumPy gives the same bits."""
    for count in (0, 1, 3, 9):
        x = rows_of(np.random.default_rng(count), count, length)
        codes, steps, sums = (a.numpy() for a in kernel(length, group, where)(torch.from_numpy(x)))
        (words, *rest), _ = quantised(x, group)
        assert np.array_equal(codes, words.view("i1").reshape(codes.shape))
        assert np.array_equal(steps, rest[0]) and np.array_equal(sums, rest[1])


@given(seed=st.integers(0, 2**31), count=st.integers(0, 12), shape=st.sampled_from(SHAPES))
@settings(max_examples=60)
def test_a_code_is_the_nearest_multiple_of_its_step(
    seed: int, count: int, shape: tuple[int, int]
) -> None:
    """Within half a step (and f32's roundings of the step); the largest becomes 127."""
    length, group = shape
    x = rows_of(np.random.default_rng(seed), count, length)
    codes, steps, sums = (a.numpy() for a in kernel(length, group, WHERE[0])(torch.from_numpy(x)))
    groups, padded = -(-length // group), -(-group // 4) * 4
    parts = codes.reshape(count, groups, padded).astype("i8")
    assert np.array_equal(parts.sum(axis=2), sums)
    assert not parts[:, :, group:].any() and np.abs(parts).max(initial=0) <= 127
    wide = np.zeros((count, groups * group), "f8")
    wide[:, :length] = x
    wide = wide.reshape(count, groups, group)
    given = steps[:, :, None].astype("f8")
    back = parts[:, :, :group] * given
    slack = 0.5 * given + 127 * given * 2.0**-21 + 1e-36
    assert (np.abs(back - wide) <= slack).all()
    largest = np.abs(wide).max(axis=2, initial=0)
    full = np.abs(parts).max(axis=2, initial=0)
    assert (full[largest > 1e-35] == 127).all() and not full[largest == 0].any()


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("where", WHERE, ids=str)
def test_rows_of_sixteen_bits(where: tuple[str, str], dtype: DType) -> None:
    x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0)).to(TORCH[dtype.name])
    narrow = kernel(70, 32, where, dtype)(x)
    wide = kernel(70, 32, where)(x.float())
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_group_nan_and_no_other(
    bad: float, where: tuple[str, str]
) -> None:
    x = rows_of(np.random.default_rng(1), 5, 70)
    want = kernel(70, 32, where)(torch.from_numpy(x))
    places = [(0, 0), (0, 69), (1, 31), (3, 32), (4, 63)]
    for place in places:
        x[place] = bad
    got = kernel(70, 32, where)(torch.from_numpy(x))
    touched = np.zeros((5, 3), bool)
    touched[[p[0] for p in places], [p[1] // 32 for p in places]] = True
    assert np.array_equal(np.isnan(got[1].numpy()), touched)
    assert np.array_equal(got[1].numpy()[~touched], want[1].numpy()[~touched])
    assert np.array_equal(got[2].numpy()[~touched], want[2].numpy()[~touched])


@pytest.mark.parametrize("zeros", ["", "u8"])
def test_nan_reaches_every_result_of_its_row(zeros: str) -> None:
    form = Form((Weight("u4", 32, zero=0 if zeros else 8, zeros=zeros),), 70, 32)
    x = np.random.default_rng(2).standard_normal((4, 70)).astype("f4")
    x[1, 40], x[2, 69] = np.nan, np.inf
    inputs = tensors(form, draw(form, lanes_of("host"), 4, 2, 0, np.nan_to_num(x)).inputs)
    codes, steps, sums = rounding(70, 32, F32, "host", "mlir")(torch.from_numpy(x))
    inputs[:3] = codes.view(torch.int32), steps, sums
    (y,) = program(form, "host")(*inputs)
    assert y.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert y[[0, 3]].isfinite().all()
