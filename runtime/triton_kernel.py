"""Triton kernels called with torch tensors on a GPU (on the CPU under ``TRITON_INTERPRET=1``).

A launch goes to the current stream of the inputs' device; outputs are allocated by torch; nothing
waits for the device. On CUDA the driver starts kernels directly (``runtime/cuda/``); on ROCm, and
in its interpreter, Triton does.
"""

from __future__ import annotations

import torch

from tilewright.backends.triton.build import build, interpreting
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, blocks_of_planes
from tilewright.runtime.calls import launched_call_source
from tilewright.runtime.cuda.forms import Forms
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_kernel import GpuKernel, choosable, make_gpu
from tilewright.runtime.report import MachineReport, VariantReport

SYMBOL = "tilewright_kernel"


class TritonKernel(GpuKernel):
    """A tile program on whole blocks as a kernel that torch tensors are given to.

    ``call`` gives the outputs, newly allocated and contiguous. BindError if the inputs do not fit,
    DeviceError where the GPU cannot take the call. Kernels are compiled when first called;
    ``reports`` then gets what became of them.
    """

    def __init__(self, program: Graph, reports: list[MachineReport] | None = None) -> None:
        self.reports = [] if reports is None else reports
        self.source = emit_source(program, SYMBOL, wide_products=interpreting())
        self.options = {
            "num_warps": int(program.attrs["warps"]),
            "num_stages": int(program.attrs["stages"]),
        }
        super().__init__(program, self.source.sizes, "is_cpu" if interpreting() else gpus.place)
        by_driver = gpus.direct and not interpreting()
        self.call: Call = self._by_driver() if by_driver else self._launched()

    def _by_driver(self) -> Call:
        """The function of a call that the CUDA driver starts."""
        source = (
            emit_source(self.program, SYMBOL, bulk=True) if self.program.attrs.get("bulk") else None
        )
        bulk = source if source is not None and source.blocks else None
        forms = Forms(self.program, self.source, bulk, self.options, self.reports)
        copied = [i for i, _ in bulk.blocks] if bulk else []
        return self.direct(self.source.strides, copied, forms)

    def _launched(self) -> Call:
        """The function of a call that Triton starts."""
        self.kernel = build(self.source)
        text = launched_call_source(self.signature, self.source.strides, self.place)
        return self.compiled(text, empty=torch.empty, launch=self._launch)

    def _launch(
        self,
        device: torch.device,
        items: int,
        tensors: tuple[torch.Tensor, ...],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> None:
        """Starts the kernel on the device's current stream, by Triton's launcher."""
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            self.kernel[(items,)](*tensors, *strides, *sizes, **self.options)
            return
        with torch.cuda.device(device):
            self.kernel[(items,)](*tensors, *strides, *sizes, **self.options)


def make_triton(
    variant: Variant, target: Target, reports: list[MachineReport] | None = None
) -> tuple[Call, VariantReport]:
    """A form of a kernel for a GPU; ``reports``: that another form fills, too."""

    def make(program: Graph, reports: list[MachineReport]) -> Call:
        return TritonKernel(program, reports).call

    return make_gpu(variant, target, "triton", make, _blocks(variant, target), reports)


def _blocks(variant: Variant, target: Target) -> BlockSchedule | None:
    """Blocks that suit Triton better than those of both back ends; None: the same."""
    info = choosable(variant)
    return None if info is None else blocks_of_planes(info, target, variant.rows)
