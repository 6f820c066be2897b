"""Rounding to each dtype, over all 16-bit patterns and at the points where double rounding
shows."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from tilewright.ir.dtypes import BF16, F16, F32, F64, I64, TABLE, DType

PATTERNS = np.arange(1 << 16, dtype=np.uint32)


def every_value(dtype: DType) -> np.ndarray:
    """What each 16-bit pattern stands for, as float64, in the order of the patterns."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if dtype == BF16:
            return (PATTERNS << 16).view(np.float32).astype(np.float64)
        return PATTERNS.astype(np.uint16).view(np.float16).astype(np.float64)


def positive_finite(dtype: DType) -> np.ndarray:
    """All finite values from 0 up; index is the bit pattern, so even indices are even mantissas."""
    values = every_value(dtype)[: 1 << 15]
    return values[np.isfinite(values)]


def rounded(dtype: DType, values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(dtype.round(values), np.float64)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("host", [np.float64, np.float32])
def test_every_value_of_the_dtype_stays(dtype: DType, host: type) -> None:
    values = every_value(dtype)
    with np.errstate(invalid="ignore"):
        got = rounded(dtype, values.astype(host))
    np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(np.signbit(got[values == 0]), np.signbit(values[values == 0]))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_halfway_goes_to_even_and_its_neighbours_do_not(dtype: DType, sign: int) -> None:
    """The doubles next to a halfway point are where rounding through f32 would go wrong."""
    values = positive_finite(dtype)
    low, high = values[:-1], values[1:]
    middle = low + (high - low) / 2
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)
    np.testing.assert_array_equal(rounded(dtype, sign * middle), sign * even)
    above, below = np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)
    np.testing.assert_array_equal(rounded(dtype, sign * above), sign * high)
    np.testing.assert_array_equal(rounded(dtype, sign * below), sign * low)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_overflow_starts_half_a_step_past_the_largest(dtype: DType) -> None:
    values = positive_finite(dtype)
    top, step = values[-1], values[-1] - values[-2]
    edge = top + step / 2  # a tie between the largest, odd, and what would be the next
    assert rounded(dtype, np.float64(np.nextafter(edge, 0))) == top
    assert rounded(dtype, np.float64(edge)) == np.inf
    assert rounded(dtype, np.float64(-1e300)) == -np.inf


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_underflow_goes_to_signed_zero(dtype: DType) -> None:
    least = positive_finite(dtype)[1]
    tiny = np.array([least / 2, -least / 2, 5e-324, -5e-324])
    got = rounded(dtype, tiny)
    np.testing.assert_array_equal(got, [0, 0, 0, 0])
    np.testing.assert_array_equal(np.signbit(got), [False, True, False, True])
    assert rounded(dtype, np.nextafter(np.float64(least / 2), 1)) == least


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_random_doubles_against_exact_fractions(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    values = positive_finite(dtype)
    drawn = np.abs(rng.standard_normal(300)) * 10.0 ** rng.integers(-6, 5, 300)
    got = rounded(dtype, drawn)
    at = np.clip(np.searchsorted(values, drawn), 1, len(values) - 1)
    for x, y, i in zip(drawn, got, at, strict=True):
        low, high = Fraction(values[i - 1]), Fraction(values[i])
        distance = abs(Fraction(float(y)) - Fraction(float(x)))
        assert distance == min(abs(low - Fraction(x)), abs(high - Fraction(x))), x


def test_f32_and_f64_are_numpys() -> None:
    x = np.array([1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 3.5e38, 1e-46, -0.0, np.nan])
    np.testing.assert_array_equal(rounded(F32, x), [1, 1 + 2.0**-23, np.inf, 0, 0, np.nan])
    np.testing.assert_array_equal(rounded(F64, x), x)


@pytest.mark.parametrize("dtype", TABLE.values(), ids=str)
def test_rounding_is_idempotent_and_held_in_the_host(dtype: DType) -> None:
    x = np.array([0.0, 1.0, 1.1, 100.0])
    once = dtype.round(x)
    assert once.dtype == np.dtype(dtype.host)
    np.testing.assert_array_equal(dtype.round(once), once)


# With a mantissa of no bits, or 1 the smallest denormal, 1 is odd and half a step goes up.
EVEN_ONE = [d for d in TABLE.values() if d.is_float and d.mantissa and d.name != "f3e1m1"]


@pytest.mark.parametrize("dtype", EVEN_ONE, ids=str)
def test_epsilon_is_the_step_at_one(dtype: DType) -> None:
    one = np.float64(1)
    assert rounded(dtype, one + dtype.epsilon) == 1 + dtype.epsilon
    assert rounded(dtype, one + dtype.epsilon / 2) == 1


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_nan_stays_nan(dtype: DType) -> None:
    payloads = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(rounded(dtype, payloads)).all()
    with np.errstate(invalid="ignore"):
        wide = payloads.astype(np.float64)
    assert np.isnan(rounded(dtype, wide)).all()


def test_integers_round_once() -> None:
    x = np.int64(2**30 + 2**22 + 1)  # just above halfway between 2**30 and 2**30 + 2**23
    assert rounded(BF16, x) == 2**30 + 2**23


@pytest.mark.parametrize(
    "dtype",
    [
        BF16,
        F16,
        F32,
        I64,
    ],
    ids=str,
)
def test_no_warning_from_overflow(dtype: DType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dtype.round(np.array([1e300, np.inf, 1.0]) if dtype.is_float else np.array([1.0, 2.0]))
