"""Compiled products: one program for a form, one for several forms that run side by side."""

from __future__ import annotations

import torch

from tilewright.ir.core import Graph
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.target import Target
from tilewright.ir.types import TensorType
from tilewright.passes.fixed_order import fix_order
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.lowbit.activations import quantise_rows
from tilewright.passes.to_tile.orders import FIXED, ordered_target
from tilewright.passes.to_tile.schedule import row_class, row_classes
from tilewright.passes.to_tile.side_by_side import common_choice, side_by_side
from tilewright.runtime.backends import default_backend, kernel_target
from tilewright.runtime.determinism import Level, using
from tilewright.runtime.family import Call
from tilewright.runtime.lowbit.form import LinearBuilder, LinearForm
from tilewright.runtime.once import Once
from tilewright.runtime.program import Program
from tilewright.runtime.tile_kernel import make_tile_kernel, own_tile_kernel


def _program(key: tuple[LinearForm, Level]) -> Program:
    form, level = key
    with using(level):
        program = Program(LinearBuilder(form).module())
    if not program.supported:
        raise UnsupportedError(f"no kernel: {program.steps[0].reason}")
    return program


def _rounding(key: tuple[tuple[int, int, DType], Level]) -> Call:
    form, level = key

    def program(target: Target) -> Graph:
        rounded = quantise_rows(*form, target)
        return fix_order(rounded) if level.order == FIXED else rounded

    return own_tile_kernel(program)


PROGRAMS: Once[tuple[LinearForm, Level], Program] = Once(_program)
# by length, group and dtype of the activations
ROUNDING: Once[tuple[tuple[int, int, DType], Level], Call] = Once(_rounding)


class SideBySide:
    """Several forms of the same activations as one kernel for each class of row counts."""

    def __init__(self, key: tuple[tuple[LinearForm, ...], Level]) -> None:
        self.forms, self.level = forms, _ = key
        self.target = kernel_target()
        self.graphs = [self._stream(f) for f in forms]
        self.classes = row_classes(self.target)
        self.kernels: Once[int, Call] = Once(self._make)

    def __call__(self, rows: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results of all forms; ``tensors`` are the shared ones, then each form's own."""
        return self.kernels[row_class(self.classes, rows)](*tensors)

    def _stream(self, form: LinearForm) -> Graph:
        kernels = run_passes(LinearBuilder(form).module(), TO_KERNELS).graphs
        if len(kernels) != 1:
            raise UnsupportedError("products side by side must be one kernel each")
        return kernels[0]

    def _make(self, rows: int) -> Call:
        choice = common_choice(self.graphs, self.target, rows)
        programs = [self._program(g, rows, choice) for g in self.graphs]
        return make_tile_kernel(side_by_side(programs), self.target, default_backend())

    def _program(self, graph: Graph, rows: int, choice: Choice) -> Graph:
        order = self.level.order
        target = ordered_target(graph, self.target, rows, order)
        return kernel_to_tile(graph, target, rows, _units(graph), choice, order)


def _units(graph: Graph) -> dict[str, int]:
    """All inputs are contiguous."""
    types = {p.hint: p.type for p in graph.params}
    return {h: len(x.shape) - 1 for h, x in types.items() if isinstance(x, TensorType)}


TOGETHER: Once[tuple[tuple[LinearForm, ...], Level], SideBySide] = Once(SideBySide)
