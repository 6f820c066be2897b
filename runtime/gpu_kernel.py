"""What kernels for GPUs have in common, whoever writes them: their calls, checked and started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import torch

from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.kernel_info import KernelInfo, analyse, is_routing
from tilewright.passes.to_tile.lowbit.info import has_packed_weights
from tilewright.passes.to_tile.lower import (
    gpu_program,
    gpu_programs_in_parts,
    gpu_programs_with_spans,
    prepared,
    routing_programs,
)
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.calls import Signature, defined
from tilewright.runtime.cuda.calls import Strides, again_source, direct_call_source
from tilewright.runtime.cuda.descriptions import Key
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.repeat import Bound, Repeat
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_parts import InParts
from tilewright.runtime.gpu_routing import routing_call
from tilewright.runtime.gpu_spans import WithSpans
from tilewright.runtime.gpu_targets import forced_schedule
from tilewright.runtime.kernel import TORCH_DTYPES, refuse
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.report import MachineReport, VariantReport


class Starts(Protocol):
    """The compiled forms of a kernel. ``start`` starts one (``direct_call_source``); ``bound``
    gives what starts it again with other addresses, all of them multiples of 16 bytes, and a
    function for each tensor copied in bulk that describes it at an address; None where such a call
    takes another form."""

    def start(
        self, device: int, items: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...], /
    ) -> None: ...

    def bound(
        self, device: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...], /
    ) -> Bound | None: ...


class GpuKernel:
    """A tile program that torch tensors are given to; ``place``: what all of them must be.

    ``call``, which subclasses set, gives the outputs, newly allocated and contiguous. BindError if
    the inputs do not fit, DeviceError where the GPU cannot take the call.
    """

    call: Call

    def __init__(self, program: Graph, sizes: tuple[str, ...], place: str) -> None:
        types = tuple(p.type for p in program.params if isinstance(p.type, BufferType))
        self.name, self.program, self.place = program.name, program, place
        grid = tuple((Size.of(size), int(tile)) for size, tile in program.attrs["grid"])
        hints = tuple(p.hint for p in program.params)
        count = int(program.attrs["outputs"])
        self.signature = Signature(program.name, types, hints, count, sizes, grid, 0)

    def direct(self, strides: Strides, copied: Sequence[int], forms: Starts) -> Call:
        """The call of a kernel that the driver starts, and ``bind``, which gives what repeats it.
        ``copied``: buffers that the bulk copy engine may read."""
        text = direct_call_source(self.signature, strides, copied, self.place)
        names = self.started_by(forms.start)
        call = self.compiled(text, **names)
        plain, bulk = (
            self.compiled(again_source(self.signature, some), "bind", call=call, **names)
            for some in ((), copied)
        )
        vars(call)["bind"] = Repeat(
            lambda **other: self.compiled(text, **(names | other)), plain, bulk, forms.bound
        )
        return call

    def started_by(self, start: Callable[..., None]) -> dict[str, Any]:
        """The names of a call that the driver starts (``direct_call_source``)."""
        return {
            "current": gpus.current,
            "elsewhere": self._elsewhere,
            "empty": gpus.empty,
            "start": start,
            "OutOfMemory": torch.OutOfMemoryError,
            "no_memory": self._no_memory,
        }

    def compiled(self, text: str, wanted: str = "call", **names: Any) -> Callable[..., Any]:
        """The function ``wanted`` of a call's text."""
        names |= {
            "strided": torch.strided,
            "complain": self._complain,
            "solve": self.signature.solve,
        }
        for i, type_ in enumerate(self.signature.params):
            names[f"dtype{i}"] = TORCH_DTYPES[type_.dtype.name]
        return defined(text, f"call of kernel {self.name}", wanted, names)

    def _elsewhere(self, device: int, tensors: tuple[torch.Tensor, ...]) -> Any:
        """A call with tensors on a device that is not the current one."""
        with gpus.on(device):
            return self.call(*tensors)

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


def choosable(variant: Variant) -> KernelInfo | None:
    """The facts of a kernel whose blocks a back end may choose; None where others are asked for,
    and for kernels of another kind (products of few bits, routing)."""
    if forced_schedule() or is_routing(variant.graph) or has_packed_weights(variant.graph):
        return None
    return analyse(prepared(variant.graph))


def make_gpu(
    variant: Variant,
    target: Target,
    backend: str,
    make: Callable[[Graph, list[MachineReport]], Call],
    schedule: BlockSchedule | None = None,
    reports: list[MachineReport] | None = None,
) -> tuple[Call, VariantReport]:
    """A form of a kernel for a GPU; ``make`` gives the call of a program on whole blocks, and adds
    to the reports what became of it. ``schedule``: instead of its own choice."""
    refuse_capture(variant.graph.name)
    units, blocks = variant.unit_dims, schedule or forced_schedule()
    given = variant.graph, target, units, blocks, variant.rows, variant.choice
    found: list[MachineReport] = [] if reports is None else reports

    def made(program: Graph) -> Call:
        return make(program, found)

    if has_packed_weights(variant.graph):
        with GENERATORS.lock:
            from tilewright.runtime.lowbit.gpu_products import PackedCall

        packed = PackedCall(variant, target, forced_schedule(), made, backend == "triton")
        call, program = packed.call, packed.program
    elif is_routing(variant.graph):
        program = gpu_program(*given)
        call = routing_call(routing_programs(variant.graph, target, units), made)
    else:
        program = gpu_program(*given)
        spans = gpu_programs_with_spans(*given)

        def usual() -> Call:
            return InParts(
                variant.graph, program, partial(gpu_programs_in_parts, *given), made
            ).call

        call = WithSpans(variant.graph, spans, usual, made).call if spans else usual()
    rows = f"up to {variant.rows} rows" if variant.rows else "any number of rows"
    report = VariantReport(
        rows, target.name, backend, variant.units, variant.static_sizes, 0, False, 0.0
    )
    report.schedule, report.machine = _schedule(program), found
    return call, report


def _schedule(program: Graph) -> str:
    """The tiles of a program's grid, warps and stages in words."""
    tiles = program.attrs["grid"]
    grid = " by ".join(f"{size} / {tile}" if tile > 1 else str(size) for size, tile in tiles)
    bulk = ", bulk copies" if program.attrs.get("bulk") else ""
    warps, stages = program.attrs["warps"], program.attrs["stages"]
    return f"grid {grid}, {warps} warps, {stages} stages{bulk}"
