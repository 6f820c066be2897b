"""Compiled products with quantised weights on GPUs: one or two Triton kernels for a form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.core import Graph
from tilewright.ir.target import named_target
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.specialise import specialise
from tilewright.passes.to_tile.kernel_info import analyse
from tilewright.passes.to_tile.whole_blocks.lowbit.program import PackedPrograms, decode_program
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.backends import MAKERS
from tilewright.runtime.cuda.gpus import refuse_capture
from tilewright.runtime.family import Call, KernelFamily
from tilewright.runtime.lowbit.form import LinearBuilder, LinearForm
from tilewright.runtime.lowbit.gpu_products import product_programs, table_on
from tilewright.runtime.once import Once
from tilewright.runtime.triton_kernel import TritonKernel


@dataclass(frozen=True)
class GpuForm:
    """A product for up to ``rows`` rows (0: any number), of whose k ``parts`` work items take a
    part each; ``counting``: the last of them finishes."""

    form: LinearForm
    target: str
    rows: int
    parts: int
    counting: bool = False


def any_graph(form: LinearForm) -> Graph:
    """The stream graph of a form."""
    (graph,) = run_passes(LinearBuilder(form).module(), TO_KERNELS).graphs
    return graph


def stream_graph(form: LinearForm) -> Graph:
    """The same with what packed codes take in memory filled in."""
    graph = any_graph(form)
    sizes = {}
    for number, weight in enumerate(form.weights):
        packing, label = weight.layout, f"{form.label}_{number}"
        sizes[f"S{label}"] = packing.chunks(form.length) * packing.words * packing.lanes
        sizes[f"G{label}"] = packing.groups(form.length) * packing.lanes
    return specialise(graph, sizes)


def tile_programs(wanted: GpuForm) -> PackedPrograms:
    """The tile programs of a form. Raises UnsupportedError where there are none."""
    graph, target = stream_graph(wanted.form), named_target(wanted.target)
    units = {p.hint: len(p.type.shape) - 1 for p in graph.params if isinstance(p.type, TensorType)}
    given = graph, target, wanted.rows, units
    return product_programs(*given, parts=wanted.parts, counting=wanted.counting)


@dataclass(frozen=True)
class Product:
    """A product with quantised weights on a kind of GPU, by one of its back ends; ``forced``:
    blocks instead of the default ones (rows, codes of a turn, warps, stages)."""

    form: LinearForm
    target: str
    backend: str
    forced: BlockSchedule | None = None


def _family(wanted: Product) -> KernelFamily:
    """The kernel of a product in all its forms. Called with x, for every weight its words, scales,
    zeros and bias, then the residual: the result, with whole blocks of columns. Traces and tuning
    know it as they know the kernels of programs."""
    target = named_target(wanted.target)
    backend = wanted.backend
    return KernelFamily(any_graph(wanted.form), target, MAKERS[backend], backend=backend)


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


PRODUCTS: Once[Product, KernelFamily] = Once(_family)
MATRICES: Once[GpuForm, GpuMatrix] = Once(GpuMatrix)
