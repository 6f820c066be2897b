"""Tilewright: a compiler for attention, low-bit matmul and expert-routing kernels."""

__version__ = "0.1.0"
