"""CUDA kernels in a fixed order: a thread is a work item of the program for one lane.

``cuda`` compiles and starts them as it does others; ``cuda-host`` runs their threads on the CPU.
"""

from __future__ import annotations

import torch

from tilewright.backends.cuda.compile import architecture_of
from tilewright.backends.cuda.host import run_on_host
from tilewright.backends.cuda.ordered import THREADS, emit_ordered
from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.runtime.backends import lower_variant
from tilewright.runtime.calls import launched_call_source
from tilewright.runtime.cuda.calls import direct_call_source, element_bytes
from tilewright.runtime.cuda.driver import Image
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.start import Layout, Start, starter
from tilewright.runtime.cuda_kernel import SYMBOL, machine_code, memory_of
from tilewright.runtime.determinism import refuse_flushing
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_kernel import GpuKernel
from tilewright.runtime.report import MachineReport, VariantReport


class OrderedCudaKernel(GpuKernel):
    """A program of one lane as a CUDA kernel that torch tensors are given to."""

    def __init__(self, program: Graph, reports: list[MachineReport], emulated: bool) -> None:
        self.source, self.reports = emit_ordered(program, SYMBOL), reports
        self.starts: dict[int, Start] = {}
        super().__init__(program, self.source.sizes, "is_cpu" if emulated else gpus.place)
        self.widths = [element_bytes(x) for x in self.signature.params]
        strides = self.source.strides
        if emulated:
            text = launched_call_source(self.signature, strides, self.place)
            self.call = self.compiled(text, empty=torch.empty, launch=self._emulate)
        else:
            text = direct_call_source(self.signature, strides, [], self.place)
            self.call = self.compiled(text, **self.started_by(self._start))

    def _start(
        self, device: int, items: int, values: tuple[int, ...], low: int, keys: tuple[object, ...]
    ) -> None:
        """Starts the kernel on the device's current stream."""
        start = self.starts.get(device) or self._load(device)
        start(-(-items // THREADS), gpus.stream(device), values, ())

    def _load(self, device: int) -> Start:
        refuse_capture(self.name)
        code = machine_code(self.source, architecture_of(f"sm_{gpus.capability(device)}"))
        image = Image(code, SYMBOL, THREADS, 0)
        loaded = gpus.driver.load(image, device)
        integers = len(self.source.strides) + len(self.source.sizes)
        layout = Layout(len(self.source.pointers), (), integers, wide=True, nulls=0)
        form = "a fixed order, a thread a work item"
        report = MachineReport(form, loaded.registers, loaded.local_bytes, 0, THREADS // 32, 1)
        self.reports.append(report)
        self.starts[device] = starter(gpus.driver, image, loaded, layout, device)
        return self.starts[device]

    def _emulate(
        self,
        device: torch.device,
        items: int,
        tensors: tuple[torch.Tensor, ...],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> None:
        """Runs the kernel's threads on the CPU."""
        arguments = [*(memory_of(x) for x in tensors), *strides, *sizes]
        blocks = -(-items // THREADS)
        run_on_host(self.source.text, SYMBOL, blocks, arguments, THREADS, 0, seed=0)


def make_ordered(variant: Variant, target: Target, emulated: bool) -> tuple[Call, VariantReport]:
    """A form of a kernel in a fixed order; ``target`` has one lane."""
    reports: list[MachineReport] = []
    kernel = OrderedCudaKernel(lower_variant(variant, target), reports, emulated)
    report = VariantReport(
        "any number of rows",
        target.name,
        "cuda-host" if emulated else "cuda",
        variant.units,
        variant.static_sizes,
        0,
        False,
        0.0,
    )
    report.machine = reports
    call = refuse_flushing(kernel.call, "cuda-host") if emulated else kernel.call
    return call, report
