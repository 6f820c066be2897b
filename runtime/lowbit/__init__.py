"""Products with quantised weights by compiled kernels."""

from tilewright.runtime.lowbit.form import EPILOGUES
from tilewright.runtime.lowbit.linear import (
    FUNCTIONS,
    gated_kernel,
    linear_kernel,
    linears_kernel,
    preferred_packing,
    why_not_bytes,
)

__all__ = [
    "EPILOGUES",
    "FUNCTIONS",
    "gated_kernel",
    "linear_kernel",
    "linears_kernel",
    "preferred_packing",
    "why_not_bytes",
]
