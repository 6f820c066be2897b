"""What the pointwise functions mean, in plain Python on one number (or two) at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

INF, NAN = math.inf, math.nan
PLAIN = [0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 3.0, -7.25, 1e-3]
EDGES = [-0.0, INF, -INF, NAN, 5e-324, 1e300, -1e300, 1e-300]


def _divide(a: float, b: float) -> float:
    if b == 0:
        same = math.copysign(1, a) == math.copysign(1, b)
        return NAN if a == 0 or math.isnan(a) else (INF if same else -INF)
    return a / b


def _guard(f: Callable[..., float], error: Callable[..., float]) -> Callable[..., float]:
    """``f``, and ``error`` where Python raises instead of giving NaN or infinity."""

    def guarded(*x: float) -> float:
        if any(math.isnan(v) for v in x):
            return NAN
        try:
            return f(*x)
        except (ValueError, OverflowError, ZeroDivisionError):
            return error(*x)

    return guarded


def _positive_infinity(*_: float) -> float:
    return INF


def _not_a_number(*_: float) -> float:
    return NAN


def _log(f: Callable[[float], float]) -> Callable[..., float]:
    return _guard(f, lambda x: -INF if x == 0 else NAN)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _round_even(x: float) -> float:
    return x if math.isinf(x) else math.copysign(float(round(x)), x)


def _maximum(a: float, b: float) -> float:
    return NAN if math.isnan(a) or math.isnan(b) else max(a, b)


def _minimum(a: float, b: float) -> float:
    return NAN if math.isnan(a) or math.isnan(b) else min(a, b)


def _times(a: float, b: float) -> float:
    if (math.isinf(a) and b == 0) or (a == 0 and math.isinf(b)):
        return NAN
    return a * b


def _scale2(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return NAN
    if math.isinf(b):
        return _times(a, INF if b > 0 else 0.0)
    try:
        return math.ldexp(a, max(-5000, min(5000, math.floor(b))))
    except OverflowError:
        return math.copysign(INF, a)


UNARY: dict[str, Callable[..., float]] = {
    "neg": lambda x: -x,
    "abs": math.fabs,
    "exp": _guard(math.exp, _positive_infinity),
    "exp2": _guard(math.exp2, _positive_infinity),
    "log": _log(math.log),
    "log2": _log(math.log2),
    "tanh": math.tanh,
    "erf": math.erf,
    "sqrt": _guard(math.sqrt, _not_a_number),
    "rsqrt": _guard(lambda x: _divide(1.0, math.sqrt(x)), _not_a_number),
    "round": _guard(_round_even, _not_a_number),
    "sigmoid": _guard(_sigmoid, lambda x: 1.0 if x > 0 else 0.0),
    "fraction": _guard(lambda x: 0.0 if math.isinf(x) else x - math.floor(x), _not_a_number),
}
BINARY: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": _times,
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "pow": math.pow,
    "larger": lambda a, b: a if a > b else b,
    "smaller": lambda a, b: a if a < b else b,
    "scale2": _scale2,
}


def _bits(f: Callable[[int, int], int]) -> Callable[[int, int, int, bool], int]:
    """A function of patterns of so many bits as one of integers, which may have a sign."""

    def of_integers(a: int, b: int, bits: int, signed: bool) -> int:
        whole = 1 << bits
        pattern = f(a % whole, b % whole) % whole
        return pattern - whole if signed and pattern >= whole // 2 else pattern

    return of_integers


BITS: dict[str, Callable[[int, int, int, bool], int]] = {
    "bit_and": _bits(lambda a, b: a & b),
    "bit_or": _bits(lambda a, b: a | b),
    "bit_xor": _bits(lambda a, b: a ^ b),
    "shift_left": _bits(lambda a, b: a << b),
    "shift_right": _bits(lambda a, b: a >> b),
    "shift_right_signed": lambda a, b, bits, signed: _bits(
        lambda p, q: (p - (p >> bits - 1 << bits)) >> q
    )(a, b, bits, signed),
}
