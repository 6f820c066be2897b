"""What the operations compute, for the compiled engine.

All numbers travel as f64, which holds floats in the oracle's precision and integers up to 2**53.
Only the engine imports this: it needs Numba.
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.runtime.simulator.compiled import apart
from tilewright.runtime.simulator.opcodes import MAXIMUM, SUM

# ruff: noqa: PLR0912, C901 (a table of operations is one long choice)

_ADD, _SUB, _MUL, _DIV, _MOD, _MAX, _MIN, _POW, _AND, _OR, _NOT, _NEG, _ABS = range(13)
_EXP, _EXP2, _LOG, _LOG2, _TANH, _SQRT, _RSQRT, _ROUND, _SIGMOID, _FMA = range(13, 23)
_FRACTION, _SCALE2, _LARGER, _SMALLER, _LT, _LE, _GT, _GE, _EQ, _NE, _SELECT = range(23, 34)
_COPY, _TRUNCATE, _TO_BOOL, _INTEGER_DIV, _INTEGER_MOD, _INTEGER_POW, _ERF = range(34, 41)


@apart
def number(code, x, y, z):  # type: ignore[no-untyped-def]
    """One pointwise operation on numbers; operands it does not have are ignored."""
    if code == _ADD:
        return x + y
    if code == _SUB:
        return x - y
    if code == _MUL:
        return x * y
    if code == _DIV:
        return x / y
    if code == _MAX:
        return x if x > y or math.isnan(x) else y
    if code == _MIN:
        return x if x < y or math.isnan(x) else y
    if code == _EXP:
        return math.exp(x)
    if code == _SELECT:
        return y if x != 0 else z
    if code == _COPY:
        return x
    if code == _NEG:
        return -x
    if code == _EQ:
        return 1.0 if x == y else 0.0
    if code == _FMA:
        return x * y + z
    return _rare_number(code, x, y, z)


@apart
def _rare_number(code, x, y, z):  # type: ignore[no-untyped-def]
    if code == _MOD:
        return x - (x / y) * y
    if code == _POW:
        return x**y
    if code == _AND:
        return 1.0 if x != 0 and y != 0 else 0.0
    if code == _OR:
        return 1.0 if x != 0 or y != 0 else 0.0
    if code == _NOT:
        return 0.0 if x != 0 else 1.0
    if code == _ABS:
        return abs(x)
    if code == _EXP2:
        return 2.0**x
    if code == _LOG:
        return np.log(x)
    if code == _LOG2:
        return np.log2(x)
    if code == _TANH:
        return math.tanh(x)
    if code == _ERF:
        return math.erf(x)
    if code == _SQRT:
        return np.sqrt(x)
    if code == _RSQRT:
        return 1.0 / np.sqrt(x)
    if code == _ROUND:
        return np.rint(x)
    if code == _SIGMOID:
        return 1.0 / (1.0 + math.exp(-x))
    if code == _FRACTION:
        return 0.0 if math.isinf(x) else x - np.floor(x)
    if code == _SCALE2:
        return x * 2.0 ** np.floor(y)
    if code == _LARGER:
        return x if x > y else y
    if code == _SMALLER:
        return x if x < y else y
    return _compared(code, x, y)


@apart
def _compared(code, x, y):  # type: ignore[no-untyped-def]
    if code == _LT:
        return 1.0 if x < y else 0.0
    if code == _LE:
        return 1.0 if x <= y else 0.0
    if code == _GT:
        return 1.0 if x > y else 0.0
    if code == _GE:
        return 1.0 if x >= y else 0.0
    if code == _NE:
        return 1.0 if x != y else 0.0
    if code == _TRUNCATE:
        return np.trunc(x)
    if code == _TO_BOOL:
        return 1.0 if x != 0 else 0.0
    if code == _INTEGER_DIV:
        return 0.0 if y == 0 else np.floor(x / y)
    if code == _INTEGER_MOD:
        return x if y == 0 else x - np.floor(x / y) * y
    if code == _INTEGER_POW:
        return x**y
    return np.nan


@apart
def combined(kind, x, y):  # type: ignore[no-untyped-def]
    """One step of a reduction; NaN if either is, as np.max has it."""
    if kind == SUM:
        return x + y
    if kind == MAXIMUM:
        return x if x >= y or math.isnan(x) else y
    return x if x <= y or math.isnan(x) else y


@apart
def scanned(kind, x, y):  # type: ignore[no-untyped-def]
    """One step of a scan: of a number and NaN the number, as np.fmax has it."""
    if kind == SUM:
        return x + y
    if kind == MAXIMUM:
        return x if x >= y or math.isnan(y) else y
    return x if x <= y or math.isnan(y) else y
