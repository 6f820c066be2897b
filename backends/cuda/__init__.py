"""CUDA C++ kernels: what they include (``headers/``), compiling them, running them on the host."""
