"""Products with quantised weights by compiled kernels."""

from tilewright.runtime.lowbit.form import EPILOGUES
from tilewright.runtime.lowbit.linear import FUNCTIONS, preferred_packing, why_not_bytes
from tilewright.runtime.lowbit.places import gated_kernel, linear_kernel, linears_kernel

__all__ = [
    "EPILOGUES",
    "FUNCTIONS",
    "gated_kernel",
    "linear_kernel",
    "linears_kernel",
    "preferred_packing",
    "why_not_bytes",
]
