"""Conversions of 16-bit floats and exact arithmetic: all patterns, and where rounding turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.ir.dtypes import BF16, F16

pytest.importorskip("numba")

from tilewright.backends.numba import numerics as n
from tilewright.backends.numba.build import jit

Function = Callable[..., Any]
ROUND: dict[str, Function] = {"bf16": n.round_bf16, "f16": n.round_f16}
SCALE2: dict[str, Function] = {"float32": n.scale2_f32, "float64": n.scale2_f64}
FRACTION: dict[str, Function] = {"float32": n.fraction_f32, "float64": n.fraction_f64}
ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def over(function: Function, result: str, *arrays: Any) -> Any:
    """A compiled function over arrays, inside compiled code as in a kernel."""
    out = np.empty(arrays[0].shape, result)
    if len(arrays) == 1:

        def one(x: Any, y: Any) -> None:
            for i in range(x.size):
                y[i] = function(x[i])

        jit(one)(arrays[0], out)
        return out

    def two(a: Any, b: Any, y: Any) -> None:
        for i in range(a.size):
            y[i] = function(a[i], b[i])

    jit(two)(arrays[0], arrays[1], out)
    return out


def same(got: Any, want: Any) -> None:
    """Equal bits, except that one NaN is as good as another."""
    kind = np.uint32 if got.dtype == np.float32 else np.uint64
    both_nan = np.isnan(got) & np.isnan(want)
    differ = (got.view(kind) != want.view(kind)) & ~both_nan
    assert not differ.any(), (got[differ][:5], want[differ][:5])


def f32_samples() -> Any:
    """Every 16-bit float, every midpoint between two neighbours, both with their neighbours in f32,
    and random patterns."""
    bf16 = ALL_BITS.astype(np.uint32) << 16
    f16 = ALL_BITS.view(np.float16).astype(np.float32).view(np.uint32)
    steps = np.array([0, 1, -1, 0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001], np.int64)
    near = (np.concatenate([bf16, f16]).astype(np.int64)[:, None] + steps).astype(np.uint32)
    small = ALL_BITS[:1025].view(np.float16).astype(np.float64)
    halves = ((small[1:] + small[:-1]) / 2).astype(np.float32).view(np.uint32)  # f16 subnormals
    around = (halves.astype(np.int64)[:, None] + steps[:3]).astype(np.uint32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 500_000, dtype=np.uint32)
    return np.concatenate([near.ravel(), around.ravel(), random]).view(np.float32)


def test_every_bf16_is_widened_and_comes_back() -> None:
    wide = over(n.bf16_to_f32, "float32", ALL_BITS)
    assert np.array_equal(wide.view(np.uint32), ALL_BITS.astype(np.uint32) << 16)
    assert np.array_equal(over(n.f32_to_bf16, "uint16", wide), ALL_BITS)


def test_every_f16_is_widened_and_comes_back() -> None:
    wide = over(n.f16_to_f32, "float32", ALL_BITS)
    with np.errstate(invalid="ignore"):
        same(wide, ALL_BITS.view(np.float16).astype(np.float32))
    assert np.array_equal(over(n.f32_to_f16, "uint16", wide), ALL_BITS)


def test_f32_to_bf16_rounds_to_nearest_even() -> None:
    values = f32_samples()
    same(over(n.round_bf16, "float32", values), BF16.round(values))


def test_f32_to_f16_rounds_to_nearest_even() -> None:
    values = f32_samples()
    with np.errstate(invalid="ignore", over="ignore"):
        want = values.astype(np.float16).astype(np.float32)
    same(over(n.round_f16, "float32", values), want)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_f64_is_rounded_once(dtype: Any) -> None:
    """Values a hair beside a midpoint: rounding to f32 first would put them on it."""
    rng = np.random.default_rng(1)
    middle = np.asarray(dtype.round(rng.standard_normal(50_000)), np.float64)
    middle *= 1 + dtype.epsilon / 2
    beside = [middle, middle * (1 + 2.0**-40), middle * (1 - 2.0**-40), middle * 1e-42]
    extreme = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 3.4028235e38, 5e-324])
    values = np.concatenate([*beside, extreme])
    once = over(n.narrowed, "float32", values)
    rounded = over(ROUND[dtype.name], "float32", once)
    with np.errstate(over="ignore"):
        want = np.asarray(dtype.round(values), np.float32)
    same(rounded, want)


SPECIAL = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 1.1754944e-38]
EXPONENTS = [0.0, -0.0, 1.0, -1.0, 127.0, 128.0, -126.5, -149.0, -150.0, -151.0, 277.0, -277.0]
FAR = [1e9, -1e9, np.inf, -np.inf, np.nan, 0.25, -0.75]


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_scale2_is_exact_ldexp(kind: str) -> None:
    x, e = (
        np.array(a, kind) for a in zip(*itertools.product(SPECIAL, EXPONENTS + FAR), strict=True)
    )
    got = over(SCALE2[kind], kind, x, e)
    with np.errstate(all="ignore"):
        floor = np.floor(e)
        whole = np.where(np.isfinite(floor), np.clip(floor, -9999, 9999), 0).astype(np.int32)
        want = np.where(np.isfinite(floor), np.ldexp(x, whole), x * np.exp2(floor))
    same(got, want.astype(kind))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_fraction_of_special_values(kind: str) -> None:
    x = np.array([*SPECIAL, *EXPONENTS, *FAR, 2.75, -2.25], kind)
    got = over(FRACTION[kind], kind, x)
    with np.errstate(invalid="ignore"):
        want = np.where(np.isinf(x), 0, x - np.floor(x)).astype(kind)
    assert np.array_equal(got, want, equal_nan=True)


def test_integer_quotients_round_down() -> None:
    low = np.iinfo(np.int64).min
    numbers = [0, 1, -1, 2, 7, -7, 8, -8, low, low + 1, -(low + 1)]
    pairs = list(itertools.product(numbers, numbers))
    a, b = (np.array(x, np.int64) for x in zip(*pairs, strict=True))

    def wrap(x: int) -> int:
        return (x + (1 << 63)) % (1 << 64) - (1 << 63)

    want = [wrap(x // y) if y else 0 for x, y in pairs]
    assert over(n.floor_div, "int64", a, b).tolist() == want
    assert over(n.floor_mod, "int64", a, b).tolist() == [
        x - (x // y) * y if y else x for x, y in pairs
    ]


def test_maxima_with_nan() -> None:
    pairs = list(itertools.product([1.0, 2.0, -np.inf, np.nan], repeat=2))
    a, b = (np.array(x, np.float64) for x in zip(*pairs, strict=True))
    for ours, numpy in (
        (n.maximum, np.maximum),
        (n.minimum, np.minimum),
        (n.largest_number, np.fmax),
        (n.smallest_number, np.fmin),
    ):
        assert np.array_equal(over(ours, "float64", a, b), numpy(a, b), equal_nan=True), numpy


def test_floats_are_cut_toward_zero() -> None:
    x = np.array([0.9, -0.9, 2.5e9, -1e18, 1e19, -1e19, np.nan, np.inf, -(2.0**63)])
    low = np.iinfo(np.int64).min
    want = [0, 0, 2_500_000_000, -(10**18), low, low, low, low, low]
    assert over(n.truncated, "int64", x).tolist() == want
