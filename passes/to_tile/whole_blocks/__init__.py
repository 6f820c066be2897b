"""Kernels as programs on whole blocks, for back ends that share blocks out among threads (GPUs)."""
