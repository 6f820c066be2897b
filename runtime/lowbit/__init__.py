"""Products with quantised weights by compiled kernels."""

from tilewright.runtime.lowbit.linear import (
    gated_kernel,
    linear_kernel,
    linears_kernel,
    preferred_packing,
    why_not_bytes,
)

__all__ = ["gated_kernel", "linear_kernel", "linears_kernel", "preferred_packing", "why_not_bytes"]
