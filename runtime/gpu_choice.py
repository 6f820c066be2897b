"""The faster back end for each kernel of a GPU: Triton, or CUDA C++ with roles where turns of its
loops overlap.

Measured on an H100 (bench/gpu_attention.py): attention with blocks of 128 x 128 whose products go
on beside the exponentials takes 0.80 to 0.98 of the time of Triton's kernel (of windows 1.04).
Products of few bits, experts and decode steps are Triton's, where it is faster. Not measured yet:
decode steps over caches in few bits, where a work item is one warp whose threads unpack words of
their own (``blocks_of_one_warp``): for sm_90, heads of 128, u8 keys and u4 values that is 621
instructions of a warp for 32 tokens, and 1,878 with 35 barriers in Triton's kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from tilewright.backends.cuda.compile import compiler_missing
from tilewright.backends.triton.build import interpreting
from tilewright.ir.core import Graph
from tilewright.ir.errors import LoadingError, UnsupportedError
from tilewright.ir.ops_tile_roles import Roles
from tilewright.ir.target import Target
from tilewright.passes.to_threads.roles import roles_program, turns_overlap
from tilewright.passes.to_tile.lower import gpu_program
from tilewright.passes.to_tile.whole_blocks.schedule import (
    BlockSchedule,
    elements,
    reads_masks,
    widest,
)
from tilewright.runtime.calls import sizes_function
from tilewright.runtime.cuda.repeat import bound
from tilewright.runtime.cuda_kernel import make_cuda, own_blocks
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.gpu_kernel import choosable
from tilewright.runtime.gpu_parts import processors, work_items
from tilewright.runtime.report import MachineReport, VariantReport
from tilewright.runtime.triton_kernel import make_triton

WIDE = BlockSchedule(128, 128, 8, 2, bulk=True, at_once=1)  # of two warp groups
WIDTH = 128  # of heads, padded: others were not measured
COPIED = 8  # elements of 16 bits that the copy engine takes at least
_MOST = 4096  # shapes whose number of work items is remembered


def make_fastest(variant: Variant, target: Target) -> tuple[Call, VariantReport]:
    """A form of a kernel for a GPU, by the back end that is faster there."""
    missing = compiler_missing()
    blocks = None if missing or interpreting() else own_blocks(variant, target)
    if blocks is not None:
        found: list[MachineReport] = []
        own, report = make_cuda(variant, target, schedule=blocks, reports=found)
        return OrElse(own, lambda: make_triton(variant, target, found)[0]).call, report
    usual, report = make_triton(variant, target)
    program = None if missing else wide_program(variant, target)
    if program is None:
        return usual, report
    wide, both = make_cuda(variant, target, schedule=WIDE, reports=report.machine)
    both.schedule += f"; fewer work items: triton, {report.schedule}"
    able = OrElse(wide, lambda: usual).call
    return Wide(variant.graph, program, able, usual).call, both


class OrElse:
    """A kernel, or another where its machine code cannot be made or loaded: compilers and drivers
    of different versions. ``call`` is it."""

    def __init__(self, first: Call, other: Callable[[], Call]) -> None:
        self.chosen, self.other = first, other
        self.failed = False

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated."""
        try:
            return self.chosen(*tensors)
        except LoadingError as error:
            if self.failed:
                raise
            self.failed, self.chosen = True, self.other()
            warnings.warn(
                f"{error.message}\nTriton's kernel is used instead; "
                'tilewright.gpu.using_backend("triton") asks for it at once',
                stacklevel=2,
            )
            return self.chosen(*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        return bound(self.chosen, tensors)


def wide_program(variant: Variant, target: Target) -> Graph | None:
    """The program on blocks of ``WIDE`` whose turns overlap as threads; None where there is none,
    and where something else is asked for."""
    if variant.rows or variant.choice or interpreting() or target.cpu != "sm_90":
        return None
    info = choosable(variant)
    if info is None or reads_masks(info):  # whose addresses take too many registers
        return None
    rows = [axis.size.constant or 0 for axis in elements(info)]
    if widest(info) != WIDTH or any(n % COPIED for n in rows):
        return None
    try:
        program = gpu_program(variant.graph, target, variant.unit_dims, WIDE)
        threads = roles_program(program, target)
    except UnsupportedError:
        return None
    (roles,) = (op for op in threads.body.ops if isinstance(op, Roles))
    return program if turns_overlap(threads) and roles.registers else None


class Wide:
    """A kernel of ``program`` where its work items fill a GPU, ``usual`` where they are fewer.
    ``call`` is it."""

    def __init__(self, graph: Graph, program: Graph, wide: Call, usual: Call) -> None:
        self.program, self.wide, self.usual = program, wide, usual
        self.sizes = sizes_function(graph)
        self.known: dict[object, Call] = {}

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated."""
        return self._chosen(tensors)(*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        return bound(self._chosen(tensors), tensors)

    def _chosen(self, tensors: tuple[torch.Tensor, ...]) -> Call:
        kind = tensors[0].device, tuple([(x.shape, x.stride()) for x in tensors])
        found = self.known.get(kind)
        if found is None:
            if len(self.known) >= _MOST:
                self.known.clear()
            found = self.known[kind] = self.wide if self._suits(tensors) else self.usual
        return found

    def _suits(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether work items fill the device, and rows lie so that they are copied in bulk (but for
        addresses, which change from call to call)."""
        strides = [x.stride() for x in tensors if x.dim() > 2]
        bulk = all(each[-1] == 1 and _whole(each[:-1]) for each in strides)
        return bulk and work_items(self.program, self.sizes(*tensors)) >= processors(
            tensors[0].device
        )


def _whole(steps: tuple[int, ...]) -> bool:
    """Whether steps are whole pieces that the copy engine takes."""
    return all(n > 0 and n % COPIED == 0 for n in steps)
