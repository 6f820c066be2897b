"""CUDA kernels loaded and started by calls of the driver: no package and no C compiler needed."""
