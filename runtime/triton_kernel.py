"""Triton kernels called with torch tensors on a GPU (on the CPU under ``TRITON_INTERPRET=1``).

A launch goes to the current stream of the inputs' device; outputs are allocated by torch; nothing
waits for the device. On CUDA the driver starts kernels directly (``runtime/cuda/``); on ROCm, and
in its interpreter, Triton does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from tilewright.backends.triton.build import build, interpreting
from tilewright.backends.triton.emit import emit_source
from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.kernel_info import is_routing
from tilewright.passes.to_tile.lower import (
    gpu_program,
    gpu_programs_in_parts,
    routing_programs,
)
from tilewright.runtime.calls import Signature, launched_call_source
from tilewright.runtime.cuda.calls import again_source, direct_call_source
from tilewright.runtime.cuda.forms import Forms
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.repeat import Repeat
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_targets import forced_schedule
from tilewright.runtime.kernel import TORCH_DTYPES, refuse
from tilewright.runtime.report import MachineReport, VariantReport
from tilewright.runtime.triton_parts import InParts
from tilewright.runtime.triton_routing import routing_call

SYMBOL = "tilewright_kernel"


class TritonKernel:
    """A tile program on whole blocks as a kernel that torch tensors are given to.

    ``call`` gives the outputs, newly allocated and contiguous. BindError if the inputs do not fit,
    DeviceError where the GPU cannot take the call. Kernels are compiled when first called;
    ``reports`` then gets what became of them.
    """

    def __init__(self, program: Graph, reports: list[MachineReport] | None = None) -> None:
        count = int(program.attrs["outputs"])
        types = tuple(p.type for p in program.params if isinstance(p.type, BufferType))
        self.name = program.name
        self.program = program
        self.reports = [] if reports is None else reports
        self.source = emit_source(program, SYMBOL, wide_products=interpreting())
        self.options = {
            "num_warps": int(program.attrs["warps"]),
            "num_stages": int(program.attrs["stages"]),
        }
        grid = tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"])
        hints = tuple(p.hint for p in program.params)
        sizes = self.source.sizes
        self.signature = Signature(program.name, types, hints, count, sizes, grid, 0)
        self.place = "is_cpu" if interpreting() else gpus.place
        direct = gpus.direct and not interpreting()
        self.call: Call = self._direct() if direct else self._launched()

    def _direct(self) -> Call:
        """The function of a call that the CUDA driver starts."""
        source = (
            emit_source(self.program, SYMBOL, bulk=True) if self.program.attrs.get("bulk") else None
        )
        bulk = source if source is not None and source.blocks else None
        forms = Forms(self.program, self.source, bulk, self.options, self.reports)
        copied = [i for i, _ in bulk.blocks] if bulk else []
        text = direct_call_source(self.signature, self.source.strides, copied, self.place)
        names: dict[str, Any] = {
            "current": gpus.current,
            "elsewhere": self._elsewhere,
            "empty": gpus.empty,
            "start": forms.start,
            "OutOfMemory": torch.OutOfMemoryError,
            "no_memory": self._no_memory,
        }
        call = self._compile(text, **names)
        factory = self._compile(again_source(self.signature, copied), "bind", call=call, **names)
        vars(call)["bind"] = Repeat(
            lambda **other: self._compile(text, **(names | other)), factory, forms
        )
        return call

    def _launched(self) -> Call:
        """The function of a call that Triton starts."""
        self.kernel = build(self.source)
        text = launched_call_source(self.signature, self.source.strides, self.place)
        return self._compile(text, empty=torch.empty, launch=self._launch)

    def _compile(self, text: str, wanted: str = "call", **names: Any) -> Callable[..., Any]:
        names |= {
            "strided": torch.strided,
            "complain": self._complain,
            "solve": self.signature.solve,
        }
        for i, type_ in enumerate(self.signature.params):
            names[f"dtype{i}"] = TORCH_DTYPES[type_.dtype.name]
        exec(compile(text, f"<call of kernel {self.name}>", "exec"), names)
        made: Callable[..., Any] = names[wanted]
        return made

    def _elsewhere(self, device: int, tensors: tuple[torch.Tensor, ...]) -> Any:
        """A call with tensors on a device that is not the current one."""
        with gpus.on(device):
            return self.call(*tensors)

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

    def _no_memory(self, error: torch.OutOfMemoryError) -> None:
        """Says what the memory was wanted for."""
        outputs = self.signature.params[len(self.signature.inputs) :]
        named = ", ".join(map(str, outputs))
        error.add_note(
            f"Tilewright was allocating the results of {self.name} ({named}); its kernels need no "
            "other memory. Free tensors, or split the call along its batch"
        )

    def _complain(self, tensors: tuple[object, ...]) -> NoReturn:
        refuse(self.name, self.signature, self.place, tensors)


def make_triton(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A form of a kernel for a GPU."""
    refuse_capture(variant.graph.name)
    names = [p.hint for p in variant.graph.params]
    units = dict(zip(names, variant.units, strict=True))
    given = variant.graph, target, units, forced_schedule(), variant.rows
    program = gpu_program(*given)
    reports: list[MachineReport] = []

    def made(program: Graph) -> Call:
        return TritonKernel(program, reports).call

    if is_routing(variant.graph):
        call = routing_call(routing_programs(variant.graph, target, units), made)
    else:
        parts = InParts(variant.graph, program, lambda: gpu_programs_in_parts(*given), made)
        call = parts.call
    rows = f"up to {variant.rows} rows" if variant.rows else "any number of rows"
    report = VariantReport(
        rows, target.name, "triton", variant.units, variant.static_sizes, 0, False, 0.0
    )
    report.schedule, report.machine = _schedule(program), reports
    return call, report


def _schedule(program: Graph) -> str:
    """The tiles of a program's grid, warps and stages in words."""
    tiles = program.attrs["grid"]
    grid = " by ".join(f"{size} / {tile}" if tile > 1 else str(size) for size, tile in tiles)
    bulk = ", bulk copies" if program.attrs.get("bulk") else ""
    warps, stages = program.attrs["warps"], program.attrs["stages"]
    return f"grid {grid}, {warps} warps, {stages} stages{bulk}"
