"""Kernels that route tokens: every token's numbers on a lane of its own."""
