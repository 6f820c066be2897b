"""The mode that x86 processors compute floats in, a register of every thread.

torch.set_flush_denormal(True) lets a thread, and those that it starts, take subnormals for 0: what
is in a fixed order (``ir/rounding.py``) sets the mode, and puts back what was.
"""

from __future__ import annotations

import platform

IEEE = 0x1F80  # MXCSR: to nearest even, nothing flushed to zero, no traps


def has_mxcsr(triple: str = "") -> bool:
    """Whether code for a machine (LLVM's name; "": this one) runs on an x86 processor."""
    return (triple or platform.machine().lower()).startswith(("x86_64", "amd64"))
