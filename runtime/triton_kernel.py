"""Triton kernels called with torch tensors on a GPU (on the CPU under ``TRITON_INTERPRET=1``).

A launch goes to the current stream of the inputs' device; outputs are allocated by torch; nothing
waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from tilewright.backends.triton.build import build, interpreting, triton_module
from tilewright.backends.triton.emit import TritonSource, emit_source
from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.runtime.calls import Signature, gpu_call_source
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_targets import forced_schedule
from tilewright.runtime.kernel import TORCH_DTYPES, refuse
from tilewright.runtime.report import VariantReport

SYMBOL = "tilewright_kernel"


class TritonKernel:
    """A tile program on whole blocks as a kernel that torch tensors are given to.

    ``call`` gives the outputs, newly allocated and contiguous. BindError if the inputs do not fit.
    """

    def __init__(self, program: Graph) -> None:
        count = int(program.attrs["outputs"])
        types = tuple(p.type for p in program.params if isinstance(p.type, BufferType))
        self.name = program.name
        self.source = emit_source(program, SYMBOL, wide_products=interpreting())
        self.kernel = build(self.source)
        self.options = {
            "num_warps": int(program.attrs["warps"]),
            "num_stages": int(program.attrs["stages"]),
        }
        grid = tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"])
        hints = tuple(p.hint for p in program.params)
        sizes = self.source.sizes
        self.signature = Signature(program.name, types, hints, count, sizes, grid, 0)
        self.bulk: TritonSource | None = None
        if program.attrs.get("bulk") and not interpreting():
            source = emit_source(program, SYMBOL, bulk=True)
            self.bulk = source if source.blocks else None
        if self.bulk is not None:
            self.bulk_kernel = build(self.bulk)
            self.descriptor = triton_module("triton.tools.tensor_descriptor").TensorDescriptor
        self.place = "is_cpu" if interpreting() else "is_cuda"
        self.call: Call = self._compile()

    def _compile(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        names: dict[str, Any] = {
            "strided": torch.strided,
            "empty": torch.empty,
            "complain": self._complain,
            "solve": self.signature.solve,
            "launch": self.launch,
        }
        for i, type_ in enumerate(self.signature.params):
            names[f"dtype{i}"] = TORCH_DTYPES[type_.dtype.name]
        text = gpu_call_source(self.signature, self.source.strides, self.place)
        exec(compile(text, f"<call of kernel {self.name}>", "exec"), names)
        call: Callable[..., tuple[torch.Tensor, ...]] = names["call"]
        return call

    def launch(
        self,
        device: torch.device,
        items: int,
        tensors: tuple[torch.Tensor, ...],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> None:
        """Starts the kernel on the device's current stream."""
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            self._start(items, tensors, strides, sizes)
            return
        with torch.cuda.device(device):
            self._start(items, tensors, strides, sizes)

    def _start(
        self,
        items: int,
        tensors: tuple[torch.Tensor, ...],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> None:
        if self.bulk is None or not all(_in_lines(tensors[i]) for i, _ in self.bulk.blocks):
            self.kernel[(items,)](*tensors, *strides, *sizes, **self.options)
            return
        blocks = [
            self.descriptor(x, list(x.shape), list(x.stride()), list(shape))
            for x, shape in ((tensors[i], shape) for i, shape in self.bulk.blocks)
        ]
        self.bulk_kernel[(items,)](*tensors, *blocks, *strides, *sizes, **self.options)

    def _complain(self, tensors: tuple[object, ...]) -> NoReturn:
        refuse(self.name, self.signature, self.place, tensors)


def _in_lines(x: torch.Tensor) -> bool:
    """Whether the bulk copy engine can read a tensor: it starts, and all dimensions but the last
    go on, at multiples of 16 bytes."""
    size = x.element_size()
    return x.data_ptr() % 16 == 0 and all(
        step > 0 and step * size % 16 == 0 for step in x.stride()[:-1]
    )


def make_triton(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A form of a kernel for a GPU."""
    names = [p.hint for p in variant.graph.params]
    units = dict(zip(names, variant.units, strict=True))
    program = gpu_program(variant.graph, target, units, forced_schedule())
    kernel = TritonKernel(program)
    rows = "any number of rows"
    report = VariantReport(
        rows, target.name, "triton", variant.units, variant.static_sizes, 0, False, 0.0
    )
    return kernel.call, report
