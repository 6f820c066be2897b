"""Compiled products with quantised weights on GPUs: one or two Triton kernels for a form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tilewright.ir.core import Graph
from tilewright.ir.packing import STRIP
from tilewright.ir.target import Target, named_target
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.whole_blocks.lowbit.program import (
    PackedPrograms,
    decode_program,
    packed_programs,
)
from tilewright.passes.to_tile.whole_blocks.lowbit.schedule import ProductSchedule
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.family import Call
from tilewright.runtime.lowbit.form import LinearBuilder, LinearForm
from tilewright.runtime.once import Once
from tilewright.runtime.triton_kernel import TritonKernel


@dataclass(frozen=True)
class GpuForm:
    """A product for up to ``rows`` rows (0: any number), of whose k ``parts`` work items take a
    part each; ``forced``: blocks instead of the default ones (rows, codes of a turn, warps,
    stages)."""

    form: LinearForm
    target: str
    rows: int
    parts: int
    forced: BlockSchedule | None = None

    @property
    def schedule(self) -> ProductSchedule | None:
        """The forced schedule as one of products."""
        y = self.forced
        if y is None:
            return None
        strips = max(1, y.inner // STRIP)
        return ProductSchedule(y.rows, 1, strips, y.warps, y.stages, self.parts)


def stream_graph(form: LinearForm) -> Graph:
    """The stream graph of a form, with what packed codes take in memory filled in."""
    (graph,) = run_passes(LinearBuilder(form).module(), TO_KERNELS).graphs
    sizes = {}
    for number, weight in enumerate(form.weights):
        packing, label = weight.layout, f"{form.label}_{number}"
        sizes[f"S{label}"] = packing.chunks(form.length) * packing.words * packing.lanes
        sizes[f"G{label}"] = packing.groups(form.length) * packing.lanes
    return specialise(graph, sizes)


def tile_programs(wanted: GpuForm) -> PackedPrograms:
    """The tile programs of a form. Raises UnsupportedError where there are none."""
    graph = canonicalise_graph(stream_graph(wanted.form))
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params if isinstance(p.type, TensorType)}
    target: Target = named_target(wanted.target)
    info, schedule = analyse(graph), wanted.schedule
    return packed_programs(info, units, target, wanted.rows, schedule, wanted.parts)


class GpuProduct:
    """A form's kernels. Called with x, for every weight its words, scales, zeros and bias, then the
    residual: the result, with whole blocks of columns."""

    def __init__(self, wanted: GpuForm) -> None:
        refuse_capture("a product with quantised weights")
        programs = tile_programs(wanted)
        self.tables = programs.tables
        self.main: Call = TritonKernel(programs.main).call
        self.finish: Call | None = None
        if programs.finish is not None:
            self.finish = TritonKernel(programs.finish).call

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        device = tensors[0].device
        made = self.main(*tensors, *(table_on(table, device) for table in self.tables))
        if self.finish is not None:
            made = self.finish(*made, *tensors)
        return made[0]


class GpuMatrix:
    """The weights of a form with one product, written out: called with words, scales and zeros of
    some blocks, [rows, k] in the dtype that they are multiplied in."""

    def __init__(self, wanted: GpuForm) -> None:
        refuse_capture("a product with quantised weights")
        info = analyse(canonicalise_graph(stream_graph(wanted.form)))
        program = decode_program(info, named_target(wanted.target))
        self.tables = program.tables
        self.call: Call = TritonKernel(program.main).call

    def __call__(self, *parts: torch.Tensor) -> torch.Tensor:
        device = parts[0].device
        return self.call(*parts, *(table_on(table, device) for table in self.tables))[0]


@cache
def table_on(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What codes stand for, on a device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


PRODUCTS: Once[GpuForm, GpuProduct] = Once(GpuProduct)
MATRICES: Once[GpuForm, GpuMatrix] = Once(GpuMatrix)
