"""Products with quantised weights by a kernel, or in torch where there is none."""

from __future__ import annotations

from collections import Counter

import torch

from tilewright.ir.errors import BackendMissingError, TargetError, UnsupportedError
from tilewright.runtime.determinism import in_force, refuse_level, refuse_unordered
from tilewright.runtime.lowbit.places import PLACES, linear_kernel
from tilewright.runtime.lowbit.reference import reference_linear
from tilewright.runtime.quantized.tensor import QuantizedTensor

FALLBACKS: Counter[str] = Counter()  # why a product ran in torch instead, and how often
REFUSALS = (UnsupportedError, BackendMissingError, TargetError)  # of a kernel


def linear_somehow(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    activation: str,
    epilogue: str = "",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``epilogue(x @ weight.T + bias) + residual``: x [M, K], weight [N, K], [M, N] in x's dtype.
    ``FALLBACKS`` counts why it ran in torch."""
    if x.is_cuda:  # from 512 rows on torch multiplies
        refuse_level(in_force(), "batch", f"products with quantised weights on {x.device}")
    if 0 not in (*x.shape, weight.shape[0]):  # else there is nothing to multiply
        if x.device.type not in PLACES:
            reason = f"there is no kernel for quantised weights on {x.device.type}"
        else:
            try:
                return linear_kernel(
                    x.contiguous(), weight, bias, activation, residual=residual, epilogue=epilogue
                )
            except REFUSALS as error:
                reason = error.message
        refuse_unordered(in_force(), UnsupportedError(reason))
        FALLBACKS[reason] += 1
    return reference_linear(x, weight, bias, activation, epilogue, residual)
