"""A number with what rounding may have done to it, and the rules of arithmetic on such numbers.

A ``Rounded`` array holds for every element

- ``x``: its exact value, computed in float64;
- ``size``: the magnitude of the terms it is made of: what the same expression gives with all
  numbers positive and all differences sums. Cancellation makes x small, not size;
- ``error``: how far a result in the program's dtypes may be from x. Infinite where nothing can be
  said: a NaN, a quotient by what may be zero, a comparison that rounding may turn over.

This is running error analysis (Wilkinson; Higham, "Accuracy and Stability of Numerical Algorithms",
3.3) with sizes in place of values, so that it holds for every order in which a sum is formed and
for sums that the compiler has distributed: each term of each is a term of ``size``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.dtypes import BF16, F32, DType

ROUNDINGS = 4  # that one operation as written may cost: rules move factors and split exponentials
INF = float("inf")


@dataclass(frozen=True)
class Rounded:
    """See above; the three arrays have one shape."""

    x: Any
    size: Any
    error: Any

    @property
    def certain(self) -> Any:
        """Where the program has exactly x."""
        return self.error == 0

    @staticmethod
    def exact(x: Any) -> Rounded:
        """Numbers as they are."""
        x = np.asarray(x)
        finite = np.where(np.isfinite(x), np.abs(x.astype(np.float64)), 0.0)
        return Rounded(x, finite, np.where(np.isnan(x.astype(np.float64)), INF, 0.0))


def unit(dtype: DType) -> float:
    """The unit roundoff: half the distance from 1 to the next number; 0 for integers."""
    return dtype.epsilon / 2 if dtype.is_float else 0.0


def sum_unit(dtype: DType) -> float:
    """The unit roundoff in which sums of a dtype are formed: f32 for narrower floats."""
    return min(unit(dtype), unit(F32)) if dtype.is_float else 0.0


def smallest(dtype: DType) -> float:
    """What may be lost at the lower end: the smallest normal number (below it a machine may give
    zero)."""
    return float(2.0 ** (2 - 2 ** (dtype.exponent - 1))) if dtype.is_float else 0.0


def largest(dtype: DType) -> float:
    """The largest number of a float."""
    top = 2.0 ** (2 ** (dtype.exponent - 1) - 1)
    return float(top * (2 - dtype.epsilon))


def settled(out: Rounded, dtype: DType) -> Rounded:
    """A result of an operation with what goes for every one: NaN and what the dtype cannot hold
    are uncertain, an infinity has no error."""
    x = np.asarray(out.x)
    size = np.broadcast_to(np.nan_to_num(out.size, nan=0.0, posinf=0.0), x.shape)
    error = np.broadcast_to(np.where(np.isnan(out.error), INF, out.error), x.shape)
    if not dtype.is_float:
        return Rounded(x, size, error)
    infinite = np.isinf(x)
    out_of_range = ~infinite & ~(np.abs(x) + error <= largest(dtype))
    error = np.where(infinite & np.isfinite(error), 0.0, error)
    if dtype == BF16:  # whose conversion by one instruction takes denormal numbers for zeros
        tiny = np.abs(x) < smallest(dtype)
        error = np.where(tiny, np.maximum(error, np.abs(x)), error)
    return Rounded(x, size, np.where(out_of_range, INF, error))


# ---- arithmetic; every function takes x, the exact result, and gives size and error of it


def added(x: Any, parts: tuple[Rounded, ...], dtype: DType) -> Rounded:
    """A sum or difference of a few numbers."""
    size = sum(p.size for p in parts)
    error = sum(p.error for p in parts) + ROUNDINGS * unit(dtype) * size
    return Rounded(x, size, error)


def multiplied(x: Any, a: Rounded, b: Rounded, dtype: DType) -> Rounded:
    """A product. An infinite one is certain if no factor may be zero or of the other sign."""
    size = a.size * b.size
    error = a.error * b.size + b.error * a.size + _product(a.error, b.error)
    error = error + ROUNDINGS * unit(dtype) * size + _tiny(size, dtype)
    doubtful = (np.abs(a.x) <= a.error) | (np.abs(b.x) <= b.error)
    return Rounded(x, size, np.where(np.isinf(x) & doubtful, INF, error))


def _product(a: Any, b: Any) -> Any:
    """a * b with 0 * inf = 0."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def divided(x: Any, a: Rounded, b: Rounded, dtype: DType) -> Rounded:
    """A quotient; by what may be zero, it is uncertain."""
    below = np.abs(np.where(np.isfinite(b.x), b.x, INF)) - b.error
    size = a.size / np.abs(b.x)
    error = (a.error + np.abs(x) * (b.error + ROUNDINGS * unit(dtype) * b.size)) / below
    error = error + ROUNDINGS * unit(dtype) * size + _tiny(size, dtype)
    return Rounded(x, size, np.where(below > 0, error, INF))


def _tiny(size: Any, dtype: DType) -> Any:
    """What underflow may take; nothing from a zero."""
    return np.where(size == 0, 0.0, smallest(dtype))


def monotone(
    f: Callable[[Any], Any], x: Any, a: Rounded, dtype: DType, *, scale: Any, floor: float = 0.0
) -> Rounded:
    """A monotone function: its values at both ends of the argument, and roundings of its own
    relative to ``scale``. Uncertain where an end is outside of its domain."""
    spread = a.error + ROUNDINGS * unit(dtype) * a.size
    ends = (f(a.x + spread), f(a.x - spread))
    error = np.maximum(np.abs(ends[0] - x), np.abs(x - ends[1]))
    error = np.where((ends[0] == x) & (ends[1] == x), 0.0, error)  # infinities, too
    error = error + 2 * ROUNDINGS * unit(dtype) * scale + floor
    finite = np.isfinite(a.x)
    size = np.where(np.isfinite(x), np.abs(x), 0.0)
    return Rounded(x, size, np.where(np.isinf(x) & finite, INF, error))


def summed(
    x: Any, terms: Rounded, axis: int | tuple[int, ...], keep: bool, dtype: DType
) -> Rounded:
    """A sum over axes, in any order: one rounding for every term."""
    axes = (axis,) if isinstance(axis, int) else axis
    count = float(np.prod([np.shape(terms.x)[i] for i in axes]))
    size = np.sum(terms.size, axis=axes, keepdims=keep)
    error = np.sum(terms.error, axis=axes, keepdims=keep)
    return _as_sum(x, size, error, count, dtype)


def contracted(x: Any, equation: str, a: Rounded, b: Rounded, dtype: DType) -> Rounded:
    """A sum of products, written as in einsum."""
    left, right = equation.replace(" ", "").split("->")[0].split(",")
    out = equation.split("->")[1].strip()
    extents = dict(zip(left + right, (*np.shape(a.x), *np.shape(b.x)), strict=True))
    count = float(np.prod([n for letter, n in extents.items() if letter not in out]))

    def product(p: Any, q: Any) -> Any:
        return np.einsum(equation, p, q, optimize=True)

    size = product(a.size, b.size)
    error = product(a.error, b.size) + product(a.size, b.error) + product(a.error, b.error)
    # what is tiny may be 0, and 0 times infinity is no number
    doubtful = product(_may_be_0(a), _infinite(b)) + product(_infinite(a), _may_be_0(b))
    return _as_sum(x, size, np.where(doubtful > 0, INF, error), count, dtype)


def _may_be_0(a: Rounded) -> Any:
    """1 for numbers that are not 0 and within their errors of it."""
    with np.errstate(all="ignore"):
        return np.where((a.error > 0) & (np.abs(a.x) <= a.error), 1.0, 0.0)


def _infinite(a: Rounded) -> Any:
    return np.where(np.isinf(np.asarray(a.x, np.float64)), 1.0, 0.0)


def _as_sum(x: Any, size: Any, error: Any, count: float, dtype: DType) -> Rounded:
    error = error + (count + ROUNDINGS) * sum_unit(dtype) * size
    error = error + ROUNDINGS * unit(dtype) * np.abs(np.where(np.isfinite(x), x, 0.0))
    error = error + np.where(size == 0, 0.0, max(1.0, count) * smallest(dtype))
    too_large = size > largest(dtype) if dtype.is_float else False
    return Rounded(x, size, np.where(too_large, INF, error))


def extreme(x: Any, terms: Rounded, axis: int, keep: bool) -> Rounded:
    """A maximum or minimum over an axis: those who may be it are within their errors of it."""
    start: Any = {"initial": 0.0}
    size = np.max(terms.size, axis=axis, keepdims=keep, **start)
    error = np.max(terms.error, axis=axis, keepdims=keep, **start)
    return Rounded(x, size, error)


def compared(x: Any, a: Rounded, b: Rounded) -> Rounded:
    """A comparison: uncertain where the difference may have another sign."""
    spread = a.error + b.error
    with np.errstate(all="ignore"):
        apart = np.abs(np.asarray(a.x, np.float64) - np.asarray(b.x, np.float64))
    doubtful = (spread > 0) & ~(apart > spread)
    same_infinity = (a.x == b.x) & np.isinf(np.asarray(a.x, np.float64)) & np.isfinite(spread)
    return truth(x, doubtful & ~same_infinity)


def truth(x: Any, doubtful: Any) -> Rounded:
    """Booleans, some of which rounding may turn over."""
    x = np.asarray(x)
    return Rounded(x, x.astype(np.float64), np.where(np.broadcast_to(doubtful, x.shape), 1.0, 0.0))


def selected(x: Any, condition: Rounded, a: Rounded, b: Rounded) -> Rounded:
    """A choice; where the condition may be turned over, either."""
    chosen = np.asarray(condition.x, bool)
    apart = np.abs(np.asarray(a.x, np.float64) - np.asarray(b.x, np.float64))
    apart = np.where(a.x == b.x, 0.0, apart)
    either = np.maximum(a.error, b.error) + apart
    error = np.where(condition.certain, np.where(chosen, a.error, b.error), either)
    largest_size = np.maximum(a.size, b.size)
    size = np.where(condition.certain, np.where(chosen, a.size, b.size), largest_size)
    return Rounded(x, size, error)


def narrowed(x: Any, a: Rounded, source: DType, dtype: DType) -> Rounded:
    """A cast."""
    if dtype.is_float:
        finite = np.where(np.isfinite(x), np.abs(x), 0.0)
        finer = source.is_float and unit(source) <= unit(dtype)
        wide = finer or source.bits > dtype.mantissa
        lossy = 0.0 if source.kind == "bool" or not wide else unit(dtype)
        error = a.error + lossy * (finite + np.where(np.isfinite(a.error), a.error, 0.0))
        floor = smallest(dtype) if lossy and source.is_float and dtype != source else 0.0
        return Rounded(x, a.size, error + np.where(finite == 0, 0.0, floor))
    if dtype.kind == "bool":
        return truth(x, ~(np.abs(a.x) > a.error) & ~a.certain)
    error = np.where(a.certain, 0.0, np.ceil(a.error) + 1.0)
    if source.is_float:  # what the integers cannot hold is undefined
        inside = np.abs(a.x) + error < 2.0 ** (dtype.bits - (dtype.kind == "int"))
        error = np.where(inside, error, INF)
    return Rounded(x, np.abs(np.asarray(x, np.float64)), error)
