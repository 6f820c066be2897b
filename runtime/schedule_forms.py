"""Kernels of a call in every schedule that their spaces have: what measurements of schedules
compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.printer import print_graph
from tilewright.ir.target import Target
from tilewright.passes.to_tile.choices import Choice, Space
from tilewright.passes.to_tile.cost_model import ranked
from tilewright.passes.to_tile.spaces import kernel_space
from tilewright.runtime.backends import MAKERS, lower_variant
from tilewright.runtime.family import Variant
from tilewright.runtime.tuning.inputs import random_inputs
from tilewright.runtime.tuning.task import KernelTask
from tilewright.runtime.tuning.traced import tasks_of_call
from tilewright.runtime.tuning.tuner import form_of


@dataclass(frozen=True)
class KernelForm:
    """One kernel of a call at the sizes of that call."""

    task: KernelTask
    variant: Variant
    target: Target
    inputs: tuple[torch.Tensor, ...]

    @property
    def graph(self) -> Graph:
        """Its stream graph, with sizes inside elements as numbers."""
        return self.variant.graph

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Of the call, by name."""
        return bind_sizes(self.graph, [tuple(x.shape) for x in self.inputs])

    @cached_property
    def space(self) -> Space:
        """Its schedules, the default's fields among them."""
        return kernel_space(self.graph, self.target, self.variant.rows)

    def ranked(self, threads: int) -> list[tuple[Choice, float]]:
        """All schedules with the cost model's seconds, best first."""
        rows, units = self.variant.rows, self.variant.unit_dims
        return ranked(self.graph, self.target, rows, self.sizes, threads, units)

    def program(self, choice: Choice) -> str:
        """The tile program of a choice: two choices with one program are one schedule."""
        return print_graph(lower_variant(replace(self.variant, choice=choice), self.target))

    def call(self, choice: Choice) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Compiles a choice; gives what runs it on the inputs."""
        made, _ = MAKERS[self.task.backend](replace(self.variant, choice=choice), self.target)
        return lambda: made(*self.inputs)


def kernel_forms(call: Callable[[], object]) -> list[KernelForm]:
    """The kernels that a call runs and that have a space of schedules, on random inputs."""
    tasks, _ = tasks_of_call(call)
    found = []
    for task, _ in tasks:
        family, variant = form_of(task)
        inputs = family.completed(tuple(random_inputs(family.source, task.inputs)))
        form = KernelForm(task, variant, family.target, inputs)
        try:
            form.space  # noqa: B018  (refuses here)
        except UnsupportedError:
            continue
        found.append(form)
    return found
