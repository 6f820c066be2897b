"""Kernels that route tokens, on whole blocks, for GPUs."""
