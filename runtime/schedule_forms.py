"""One form of a kernel and its schedules: what tuning, and measurements of schedules, know of it.

The form is the one that calls of the task's sizes take. Nothing is compiled until it is called.
"""

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
from tilewright.runtime.family import KernelFamily, Variant
from tilewright.runtime.tuning.inputs import random_inputs
from tilewright.runtime.tuning.task import KernelTask, uninitialised
from tilewright.runtime.tuning.traced import tasks_of_call
from tilewright.runtime.tuning.trial import kernel_family


@dataclass(frozen=True)
class KernelForm:
    """One kernel at the sizes of a call."""

    task: KernelTask
    family: KernelFamily
    variant: Variant

    @staticmethod
    def of(task: KernelTask) -> KernelForm:
        """The form that a task is about."""
        family = kernel_family(task.graph, task, {})
        key = family.key(family.completed(uninitialised(family.source, task.inputs)))
        return KernelForm(task, family, family.variant(key))

    @property
    def target(self) -> Target:
        """What it is compiled for."""
        return self.family.target

    @property
    def graph(self) -> Graph:
        """Its stream graph, with sizes inside elements as numbers."""
        return self.variant.graph

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Of the call, by name."""
        given = self.family.completed(uninitialised(self.family.source, self.task.inputs))
        return bind_sizes(self.graph, [tuple(x.shape) for x in given])

    @cached_property
    def space(self) -> Space:
        """Its schedules, the default's fields among them. Raises UnsupportedError for a kernel that
        has one schedule only."""
        return kernel_space(self.graph, self.target, self.variant.rows)

    def ranked(self, threads: int) -> list[tuple[Choice, float]]:
        """All schedules with the cost model's seconds, best first."""
        rows, units = self.variant.rows, self.variant.unit_dims
        return ranked(self.graph, self.target, rows, self.sizes, threads, units)

    def program(self, choice: Choice) -> str:
        """The tile program of a choice: two choices with one program are one schedule."""
        return print_graph(lower_variant(replace(self.variant, choice=choice), self.target))

    @cached_property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Random values for a call."""
        given = random_inputs(self.family.source, self.task.inputs)
        return self.family.completed(tuple(given))

    def call(self, choice: Choice) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Compiles a choice; gives what runs it on the inputs."""
        made, _ = MAKERS[self.task.backend](replace(self.variant, choice=choice), self.target)
        return lambda: made(*self.inputs)


def kernel_forms(call: Callable[[], object]) -> list[KernelForm]:
    """The kernels that a call runs and that have a space of schedules."""
    tasks, _ = tasks_of_call(call)
    found = []
    for task, _ in tasks:
        form = KernelForm.of(task)
        try:
            form.space  # noqa: B018  (refuses here)
        except UnsupportedError:
            continue
        found.append(form)
    return found
