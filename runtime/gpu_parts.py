"""Kernels whose work items share out the inner axis where there would be too few of them.

A decode step has a work item for every key head of every sequence: on a GPU with hundreds of places
for work items most would stay empty. How many parts the positions are cut into follows from the
sizes of a call and the number of places, never from what the tensors hold: results are the same
every time, nothing is compiled again, and a CUDA graph may hold the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, cached_property

import torch

from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.whole_blocks.schedule import parts_of
from tilewright.runtime.calls import sizes_function
from tilewright.runtime.cuda.repeat import bound

Call = Callable[..., tuple[torch.Tensor, ...]]
Shapes = tuple[tuple[int, ...], ...]
PRETENDED = 132  # multiprocessors of a GPU that Triton's interpreter stands for
_MOST = 4096  # shapes whose parts are remembered


class Pair:
    """Two kernels, the first of which leaves something in memory for the second."""

    def __init__(self, programs: tuple[Graph, ...], make: MakeKernel, dtype: torch.dtype) -> None:
        """``dtype``: of what lies between."""
        self.first, self.second = map(make, programs)
        self.dtype = dtype

    def __call__(
        self, tensors: tuple[torch.Tensor, ...], memory: Shapes
    ) -> tuple[torch.Tensor, ...]:
        """The results; ``memory``: the shapes of what lies between."""
        between = self._between(memory, tensors[0].device)
        self.first(*tensors, *between)
        return self.second(*tensors, *between)

    def bind(self, tensors: tuple[torch.Tensor, ...], memory: Shapes) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        device = tensors[0].device
        given = *tensors, *self._between(memory, device)
        first, second = bound(self.first, given), bound(self.second, given)
        if first is None or second is None:
            return None

        def again(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            between = self._between(memory, device)
            first(*tensors, *between)
            return second(*tensors, *between)

        return again

    def _between(self, memory: Shapes, device: torch.device) -> list[torch.Tensor]:
        return [torch.empty(shape, dtype=self.dtype, device=device) for shape in memory]


class InParts:
    """A kernel in one form for many work items, and as two kernels for few. ``call`` is it."""

    def __init__(
        self, graph: Graph, whole: Graph, pair: Callable[[], tuple[Graph, ...]], make: MakeKernel
    ) -> None:
        """``whole`` and ``pair`` are the programs of the stream graph ``graph``, ``make`` compiles
        one."""
        self.graph, self.program, self.pair, self.make = graph, whole, pair, make
        self.whole, self.sizes = make(whole), sizes_function(graph)
        self.known: dict[tuple[torch.Size, ...], tuple[int, Shapes]] = {}

    @cached_property
    def programs(self) -> tuple[Graph, ...]:
        """Both programs, or none where parts cannot be put together."""
        try:
            return self.pair()
        except UnsupportedError:
            return ()

    @cached_property
    def both(self) -> Pair:
        """Both kernels."""
        return Pair(self.programs, self.make, torch.float32)

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated."""
        shapes = tuple([x.shape for x in tensors])
        found = self.known.get(shapes)
        if found is None:
            if len(self.known) >= _MOST:
                self.known.clear()
            found = self.known[shapes] = self._found(tensors)
        parts, memory = found
        return self.both(tensors, memory) if parts > 1 else self.whole(*tensors)

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        parts, memory = self._found(tensors)
        return self.both.bind(tensors, memory) if parts > 1 else bound(self.whole, tensors)

    def _found(self, tensors: tuple[torch.Tensor, ...]) -> tuple[int, Shapes]:
        """How many parts for tensors of these shapes, and the shapes of their results."""
        if not self.programs or not tensors:
            return 1, ()
        sizes, device = self.sizes(*tensors), tensors[0].device
        first, _ = self.programs
        items = work_items(self.program, sizes)
        inner, block, at_once = first.attrs["shares"]
        blocks = -(-Size.of(inner).evaluate(sizes) // block)
        parts = parts_of(items, blocks, processors(device) * at_once) if items else 1
        (name,) = set(first.sizes) - set(self.graph.sizes)
        memory = [p.type for p in first.params[len(self.graph.params) :]]
        values = {**sizes, name: parts}
        return parts, tuple(
            tuple(size.evaluate(values) for size in x.shape)
            for x in memory
            if isinstance(x, BufferType)
        )


MakeKernel = Callable[[Graph], Call]


def work_items(program: Graph, sizes: Mapping[str, int]) -> int:
    """How many work items a program's grid has for these sizes."""
    blocks = (-(-Size.of(size).evaluate(sizes) // tile) for size, tile in program.attrs["grid"])
    return math.prod(blocks)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    if device.type != "cuda":
        return PRETENDED
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
