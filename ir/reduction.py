"""Sum, maximum and minimum along an axis, as all levels mean them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

IDENTITIES = {"sum": 0.0, "max": -math.inf, "min": math.inf}  # of floats


def identity_of(kind: str, dtype: Any) -> float:
    """What an empty reduction gives in a NumPy dtype."""
    if kind == "sum" or np.issubdtype(dtype, np.floating):
        return IDENTITIES[kind]
    if dtype == np.bool_:
        return kind == "min"
    limits = np.iinfo(dtype)
    return int(limits.min if kind == "max" else limits.max)


def reduce_axis(x: Any, kind: str, axis: int, keep: bool = False) -> Any:
    """The reduction of an array along an axis; the identity where it is empty."""
    functions: dict[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min}
    with np.errstate(all="ignore"):
        return functions[kind](x, axis=axis, keepdims=keep, initial=identity_of(kind, x.dtype))


def reduce_by_halves(x: Any, kind: str, axis: int) -> Any:
    """The reduction of 2^n elements in one order: the first half with the second, until one is
    left; of NaN and another number the second operand is taken for the larger and the smaller."""
    combine: dict[str, Any] = {
        "sum": np.add,
        "max": lambda a, b: np.where(np.greater(a, b), a, b),
        "min": lambda a, b: np.where(np.less(a, b), a, b),
    }
    with np.errstate(all="ignore"):
        while x.shape[axis] > 1:
            low, high = np.split(x, 2, axis=axis)
            x = combine[kind](low, high)
    return x
