"""What calls ask of this machine's GPUs, through torch; tests put another in its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch

from tilewright.ir.errors import DeviceError
from tilewright.runtime.cuda.driver import Driver


class Gpus:
    """CUDA devices as torch numbers them. ``place`` is what tensors on them are."""

    place = "is_cuda"

    @cached_property
    def driver(self) -> Driver:
        """The CUDA driver. Raises BackendMissingError or DeviceError where it is of no use."""
        return Driver()

    @cached_property
    def direct(self) -> bool:
        """Whether kernels are started by the CUDA driver; else (ROCm) by Triton's launcher."""
        return torch.version.hip is None

    @cached_property
    def current(self) -> Callable[[], int]:
        """The number of the current device."""
        found: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
        return found

    @cached_property
    def stream(self) -> Callable[[int], int]:
        """The handle of a device's current stream."""
        quick: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        return quick or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))

    @cached_property
    def empty(self) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]:
        """A new tensor of a shape and strides on the current device, by torch's allocator.

        Inductor's way: torch.empty takes twice as long, mostly to read its arguments."""
        guards: Any = getattr(torch._C._dynamo, "guards", None)
        quick = getattr(guards, "_empty_strided_cuda", None)
        if quick is not None:
            return quick  # type: ignore[no-any-return]
        return lambda shape, strides, dtype: torch.empty_strided(
            shape, strides, dtype=dtype, device="cuda"
        )

    def on(self, device: int) -> AbstractContextManager[object]:
        """Makes a device the current one for a while."""
        return torch.cuda.device(device)

    def capability(self, device: int) -> int:
        """A device's compute capability: 90 for 9.0."""
        major, minor = torch.cuda.get_device_capability(device)
        return major * 10 + minor

    @cached_property
    def captured(self) -> Callable[[], bool]:
        """Whether the current stream is being captured into a CUDA graph; there are devices."""
        quick: Callable[[], bool] | None = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)
        return quick or torch.cuda.is_current_stream_capturing

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        return torch.cuda.is_available() and self.captured()


gpus = Gpus()


def refuse_capture(name: str) -> None:
    """DeviceError if a stream is being captured: compiling and loading kernels would break it."""
    if gpus.capturing():
        raise DeviceError(
            f"{name} is called for the first time with inputs of this kind while a CUDA graph is "
            "being captured, and its kernel would have to be compiled: call it once with such "
            "inputs before capturing (torch.cuda.graph's warm-up), then capture"
        )
