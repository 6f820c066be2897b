"""Codes of up to 8 bits: what every code of a format stands for, and which code a number gets.

A codec is two tables: the value of every code, and the numbers at which the nearest code changes.
Rounding by comparison with these is exact for every double, whatever the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]

# The quantiles of a normal distribution, scaled to end at 1: QLoRA (arXiv 2305.14314), appendix E,
# with bitsandbytes' digits.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, eq=False)
class Codec:
    """``values`` [2**bits] are what codes stand for. A number x has as nearest code
    ``codes[how many limits are below x]``, where limits [n - 1] and codes [n] go by rising value.

    With ``sign`` (the sign's bit, else 0) limits and codes are those of magnitudes. ``nan`` and
    ``infinity`` are the codes of those, None if there is none.
    """

    values: Values
    limits: npt.NDArray[np.float64]
    codes: Codes
    sign: int = 0
    nan: int | None = None
    infinity: int | None = None

    def encode(self, numbers: npt.ArrayLike) -> Codes:
        """The code of the nearest value, ties to even; beyond the largest value, its code.

        Only an infinity becomes one, where the format has it. NaN becomes NaN, or, where there is
        none, the code of the value nearest to 0: who must not lose it has to look before.
        """
        x = np.asarray(numbers).astype(np.float64)
        lost, negative = np.isnan(x), np.signbit(x)
        size = np.where(lost, 0.0, np.abs(x) if self.sign else x)
        out = np.asarray(self.codes[np.searchsorted(self.limits, size)])
        if self.infinity is not None:
            out = np.where(np.isinf(x), np.uint8(self.infinity), out)
        if self.nan is not None:
            out = np.where(lost, np.uint8(self.nan), out)
        if self.sign:
            signed = negative if self.nan is not None else negative & ~lost
            out = out | np.where(signed, np.uint8(self.sign), np.uint8(0))
        return np.asarray(out, np.uint8)

    def decode(self, codes: npt.ArrayLike) -> Values:
        """What codes below 2**bits stand for."""
        return np.asarray(self.values[np.asarray(codes)], np.float32)


def limit(low: float, high: float, tie_up: bool) -> float:
    """The largest double whose nearest of two neighbours is the lower one."""
    middle = (Fraction(float(low)) + Fraction(float(high))) / 2
    nearest = float(middle)
    if Fraction(nearest) > middle or (tie_up and Fraction(nearest) == middle):
        nearest = float(np.nextafter(nearest, -np.inf))
    return nearest


def integer_codec(bits: int, signed: bool) -> Codec:
    """Codes are the numbers, biased by 2**(bits - 1) if ``signed``."""
    codes = np.arange(1 << bits, dtype=np.uint8)
    values = codes.astype(np.float32) - np.float32((1 << bits >> 1) if signed else 0)
    odd = values[:-1] % 2 != 0
    limits = [limit(v, v + 1, bool(up)) for v, up in zip(values[:-1], odd, strict=True)]
    return Codec(values, np.array(limits), codes)


def float_codec(exponent: int, mantissa: int, special: str) -> Codec:
    """Sign, exponent and mantissa. ``special``: "" for numbers only, "nan" if the code with all
    bits set is NaN, "ieee" if the largest exponent is infinity and NaN.

    Between two numbers of one digit, both odd, a tie goes to the larger (IEEE 754-2019, 4.3.1).
    """
    bias, count = (1 << exponent - 1) - 1, 1 << exponent + mantissa
    whole = 1 << mantissa
    sizes = [
        np.ldexp(float(code % whole + (whole if code >= whole else 0)), power - mantissa)
        for code in range(count)
        for power in [max(code >> mantissa, 1) - bias]
    ]
    finite = {"": count, "nan": count - 1, "ieee": count - whole}[special]
    limits = [
        limit(sizes[c], sizes[c + 1], c % 2 == 1 if mantissa else c > 0) for c in range(finite - 1)
    ]
    sizes[finite:] = [np.nan] * (count - finite)
    infinity, nan = None, None if finite == count else count - 1
    if special == "ieee":
        sizes[finite], infinity, nan = np.inf, finite, finite + whole // 2
    values = np.array([*sizes, *(-np.array(sizes))], np.float32)
    codes = np.arange(finite, dtype=np.uint8)
    return Codec(values, np.array(limits), codes, count, nan, infinity)


def power_codec() -> Codec:
    """e8m0 of OCP MX: 2**(code - 127), and NaN. No sign, no 0; a number below 0 becomes NaN."""
    values = np.ldexp(1.0, np.arange(255) - 127)
    limits = [float(np.nextafter(-0.0, -1.0)), *(limit(v, 2 * v, True) for v in values[:-1])]
    codes = np.array([255, *range(255)], np.uint8)
    return Codec(np.append(values, np.nan).astype(np.float32), np.array(limits), codes, nan=255)


def table_codec(table: Sequence[float]) -> Codec:
    """Any finite values. A tie goes to the even code, between two of a kind to the lower one."""
    values = np.array(table, np.float32)
    first = {float(v): code for code, v in reversed(list(enumerate(values)))}
    rising = sorted(first)
    codes = [first[v] for v in rising]
    limits = [
        limit(rising[at], rising[at + 1], (codes[at] % 2, codes[at]) > (code % 2, code))
        for at, code in enumerate(codes[1:])
    ]
    return Codec(values, np.array(limits), np.array(codes, np.uint8))
