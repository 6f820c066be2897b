"""Programs on whole blocks as kernels of the back end that is asked for, and whether a call is for
a GPU's kernels at all."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.runtime.family import Call
from tilewright.runtime.gpu_targets import pretended
from tilewright.runtime.locks import GENERATORS


def on_gpu(x: torch.Tensor) -> bool:
    """Whether a call with this tensor is for a GPU's kernels: CPU tensors stand for a GPU's in
    Triton's interpreter and under back end ``cuda-host``."""
    return x.is_cuda or (x.is_cpu and (pretended.on or pretended.backend == "cuda-host"))


def gpu_call(program: Graph, target: Target, backend: str) -> Call:
    """The call of a program on whole blocks. Raises UnsupportedError for what the back end has no
    form for."""
    return _MAKERS[backend](program, target)


def _triton(program: Graph, target: Target) -> Call:
    with GENERATORS.lock:
        from tilewright.runtime.triton_kernel import TritonKernel

    return TritonKernel(program).call


def _cuda(program: Graph, target: Target, emulated: bool = False) -> Call:
    with GENERATORS.lock:
        from tilewright.runtime.cuda_kernel import CudaKernel

    return CudaKernel(program, target, [], emulated).call


def _cuda_host(program: Graph, target: Target) -> Call:
    return _cuda(program, target, emulated=True)


_MAKERS: dict[str, Callable[[Graph, Target], Call]] = {
    "gpu": _triton,  # the faster one so far, for all that comes here
    "triton": _triton,
    "cuda": _cuda,
    "cuda-host": _cuda_host,
}
