"""Products with quantised weights by the kernels of the place where x is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.runtime.gpu_backend import on_gpu
from tilewright.runtime.lowbit import gpu, linear
from tilewright.runtime.quantized.tensor import QuantizedTensor

PLACES = ("cpu", "cuda")  # torch's kinds of devices that have kernels


def linear_kernel(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    activation: str = "float",
    *,
    residual: torch.Tensor | None = None,
    epilogue: str = "",
) -> torch.Tensor:
    """``linear.linear_kernel``, or ``gpu.gpu_linear``."""
    kernel = gpu.gpu_linear if on_gpu(x) else linear.linear_kernel
    return kernel(x, weight, bias, activation, residual=residual, epilogue=epilogue)


def gated_kernel(
    x: torch.Tensor,
    gate: QuantizedTensor,
    up: QuantizedTensor,
    biases: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    activation: str = "float",
    *,
    epilogue: str = "silu",
) -> torch.Tensor:
    """``linear.gated_kernel``, or ``gpu.gpu_gated``."""
    kernel = gpu.gpu_gated if on_gpu(x) else linear.gated_kernel
    return kernel(x, gate, up, biases, activation, epilogue=epilogue)


def linears_kernel(
    x: torch.Tensor,
    weights: Sequence[QuantizedTensor],
    biases: Sequence[torch.Tensor | None] = (),
    activation: str = "float",
) -> tuple[torch.Tensor, ...]:
    """``linear.linears_kernel``, or ``gpu.gpu_linears``."""
    kernel = gpu.gpu_linears if on_gpu(x) else linear.linears_kernel
    return kernel(x, weights, biases, activation)
