"""Attention from a layer's input as one kernel: the rewrite, the program, what is left after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.parser import parse
from tilewright.ir.printer import print_module
from tilewright.ir.sizes import Size
from tilewright.passes.rematerialise import Balance, Fused, fuse
from tilewright.runtime.program import Program
from tilewright.runtime.targets import host_target


class FromInput:
    """A graph along ``tokens`` (a size's name) with its products made again inside its kernel, as
    is cheapest for ``sizes``. Raises UnsupportedError if that takes more than one kernel."""

    def __init__(self, graph: Graph, tokens: str, sizes: Mapping[str, int]) -> None:
        rows = Balance.of(host_target()).item_rows
        fused = fuse(graph, Size.of(tokens), sizes, rows)
        self.program = _program(print_module(Module((fused.graph,))))
        self.names = self.program.inputs
        self.fused: Fused = fused
        if not self.program.supported or len(self.program.steps) > 1:
            reason = self.program.steps[0].reason or "it needs more than one kernel"
            raise UnsupportedError(f"attention from a layer's input in one kernel: {reason}")

    @property
    def scratch_bytes(self) -> int:
        """Of each worker, in the largest form that was called; 0 before the first call."""
        forms = [form for kernel in self.program.explain().kernels for form in kernel.variants]
        return max((form.scratch_bytes for form in forms), default=0)

    def __call__(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The first result for inputs by name."""
        out = self.program(*(given[name] for name in self.names))[0]
        last = self.fused.last[0]
        return out if last is None else torch.einsum(last.equation, out, given[last.weights])


@lru_cache(maxsize=256)
def _program(text: str) -> Program:
    """One for all numbers of rows that have the same program: it has a form for each class."""
    return Program(parse(text))
