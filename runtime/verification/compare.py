"""Results against exact ones: the worst error as a share of its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tilewright.runtime.verification.rounded import Rounded


@dataclass(frozen=True)
class Comparison:
    """How far results are from exact: ``ratio`` is the worst error ÷ bound (infinite for what is
    not finite and should be, or differs and may not); ``error`` and ``bound`` are that element's.
    ``unspecified``: elements of which the bound says nothing."""

    ratio: float = 0.0
    error: float = 0.0
    bound: float = 0.0
    result: int = 0
    elements: int = 0
    unspecified: int = 0

    @property
    def good(self) -> bool:
        return self.ratio <= 1.0


def compare(results: Sequence[Any], exact: Sequence[Rounded]) -> Comparison:
    """The worst element of all results (NumPy arrays of the programs' values)."""
    worst, elements, unspecified = Comparison(), 0, 0
    for at, (got, want) in enumerate(zip(results, exact, strict=True)):
        if np.shape(got) != np.shape(want.x):
            return Comparison(float("inf"), float("inf"), 0.0, at)
        found = _compare_one(np.asarray(got, np.float64), want, at)
        elements += np.size(want.x)
        unspecified += int(np.isinf(want.error).sum())
        if not found.ratio <= worst.ratio:
            worst = found
    return Comparison(worst.ratio, worst.error, worst.bound, worst.result, elements, unspecified)


def _compare_one(got: Any, want: Rounded, at: int) -> Comparison:
    x = np.asarray(want.x, np.float64)
    if not x.size:
        return Comparison(result=at)
    with np.errstate(all="ignore"):
        error = np.where((got == x) | (np.isnan(got) & np.isnan(x)), 0.0, np.abs(got - x))
        error = np.where(np.isnan(error), np.inf, error)
        ratio = np.where(error == 0, 0.0, error / want.error)
        # nothing is said of these: a NaN, or what rounding may turn over
        ratio = np.where(np.isinf(want.error), 0.0, ratio)
    worst = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return Comparison(float(ratio[worst]), float(error[worst]), float(want.error[worst]), at)


def to_numpy(tensor: torch.Tensor) -> Any:
    """The numbers of a tensor; floats in float64."""
    wide = tensor.double() if tensor.dtype.is_floating_point else tensor
    return wide.numpy()
