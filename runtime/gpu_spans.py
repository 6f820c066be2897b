"""Kernels whose work items look up which blocks they walk: once for all heads, where many would.

Documents are such: which keys a block of queries sees follows from tables, and is the same for all
heads and sequences. A kernel before the other finds it (passes/to_tile/whole_blocks/spans.py):
another launch, so only where work items are many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.runtime.calls import sizes_function
from tilewright.runtime.cuda.repeat import bound
from tilewright.runtime.gpu_parts import Call, MakeKernel, Pair, processors, work_items

# Work items of a multiprocessor that look up for themselves: a look-up takes some microseconds, as
# a launch does, and two or three items run at once.
MOST = 4
_MOST = 4096  # shapes whose memory is remembered


class WithSpans:
    """A kernel as two where many work items would look up the same. ``call`` is it."""

    def __init__(
        self,
        graph: Graph,
        programs: tuple[Graph, ...],
        usual: Callable[[], Call],
        make: MakeKernel,
    ) -> None:
        """``programs`` are both, of the stream graph ``graph``; ``usual`` gives the call for few
        work items, ``make`` compiles a program."""
        self.graph, self.programs, self.make, self.make_usual = graph, programs, make, usual
        self.sizes = sizes_function(graph)
        self.known: dict[tuple[torch.Size, ...], tuple[int, ...] | None] = {}

    @cached_property
    def usual(self) -> Call:
        """The call whose work items look up for themselves."""
        return self.make_usual()

    @cached_property
    def both(self) -> Pair:
        """Both kernels."""
        return Pair(self.programs, self.make, torch.int64)

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated."""
        memory = self._memory(tensors)
        return self.usual(*tensors) if memory is None else self.both(tensors, (memory,))

    def bind(self, *tensors: torch.Tensor) -> Call | None:
        """What repeats a call with these tensors, and others of their shapes and strides."""
        memory = self._memory(tensors)
        return bound(self.usual, tensors) if memory is None else self.both.bind(tensors, (memory,))

    def _memory(self, tensors: tuple[torch.Tensor, ...]) -> tuple[int, ...] | None:
        """The shape of what the first kernel leaves to the second; None for few work items."""
        shapes = tuple([x.shape for x in tensors])
        if shapes not in self.known:
            if len(self.known) >= _MOST:
                self.known.clear()
            self.known[shapes] = self._found(tensors)
        return self.known[shapes]

    def _found(self, tensors: tuple[torch.Tensor, ...]) -> tuple[int, ...] | None:
        sizes, device = self.sizes(*tensors), tensors[0].device
        first, second = self.programs
        if work_items(second, sizes) <= MOST * processors(device):
            return None
        (name,) = set(first.sizes) - set(self.graph.sizes)
        rows, block = first.attrs["grid"][-1]
        sizes[name] = -(-Size.of(rows).evaluate(sizes) // block)
        memory = first.params[len(self.graph.params)].type
        assert isinstance(memory, BufferType)
        return tuple(size.evaluate(sizes) for size in memory.shape)
