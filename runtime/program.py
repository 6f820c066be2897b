"""A whole program: tensor graph in, kernels and their wiring inside, torch tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.printer import print_graph
from tilewright.ir.target import named_target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels import find_channels
from tilewright.passes.pipeline import TO_KERNELS, run_passes
from tilewright.passes.split_sums import result_names
from tilewright.runtime.backends import MAKERS, choose_backend, run_on_host
from tilewright.runtime.family import Call, KernelFamily
from tilewright.runtime.report import KernelReport, ProgramReport
from tilewright.runtime.targets import require_runnable, resolve_target


@dataclass
class Step:
    """One kernel, where its inputs come from, and how to call it."""

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Call
    family: KernelFamily | None
    reason: str = ""

    @cached_property
    def channels(self) -> list[str]:
        """Its channels in words."""
        return [str(c) for c in find_channels(self.graph)]


class Program:
    """A compiled module, callable with torch tensors on the CPU.

    ``module`` holds one tensor-level graph. ``target`` and ``backend`` default to this machine
    and to
    the fastest back end installed. Raises TargetError, UnsupportedError, BackendMissingError.
    """

    def __init__(
        self, module: Module, *, target: str | None = None, backend: str | None = None
    ) -> None:
        self.module = module
        self.backend = choose_backend(backend)
        self.target = resolve_target(target)
        if self.backend == "numba":
            self.target = named_target("scalar")  # plain loops, one element at a time
        if self.backend == "mlir":
            require_runnable(self.target)
        self._as_written = Module(())  # the streams before any rule was applied
        self.results: tuple[str, ...] = ()
        kernels = run_passes(module, TO_KERNELS, after=lambda step, m: self._watch(step.name, m))
        self.inputs = tuple(p.hint for p in module.main.params)
        self.steps = [self._step(graph) for graph in kernels.graphs]
        self._single = self._only_step()

    def _watch(self, name: str, module: Module) -> None:
        if name == "to_stream":
            self._as_written = module
        if name == "reorder":
            self.results = result_names(module)

    @cached_property
    def deep(self) -> list[str]:
        """The channels of the program as written that would have to be kept in memory."""
        before = canonicalise_graph(self._as_written.main)
        return [str(c) for c in find_channels(before) if c.deep]

    def _step(self, graph: Graph) -> Step:
        inputs = tuple(p.hint for p in graph.params)
        outputs = tuple(v.hint for v in graph.results)
        try:
            whole = self._on_host(self.module.main) if inputs == self.inputs else None
            family = KernelFamily(graph, self.target, MAKERS[self.backend], whole)
        except UnsupportedError as error:
            return Step(graph, inputs, outputs, self._on_host(graph), None, error.message)
        return Step(graph, inputs, outputs, family, family)

    def _on_host(self, graph: Graph) -> Call:
        return lambda *tensors: run_on_host(graph, *tensors)

    def _only_step(self) -> Call | None:
        """The call of the single kernel if its inputs and results are the program's own."""
        if len(self.steps) != 1 or self.steps[0].inputs != self.inputs:
            return None
        if self.steps[0].outputs != self.results:
            return None
        return self.steps[0].call

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated. Raises BindError if the inputs do not fit."""
        if self._single is not None:
            return self._single(*tensors)
        if len(tensors) != len(self.inputs):
            names = ", ".join(f"%{n}" for n in self.inputs)
            given = len(tensors)
            raise BindError(f"{self.module.main.name} takes {names}; {given} inputs given")
        values = dict(zip(self.inputs, tensors, strict=True))
        for step in self.steps:
            results = step.call(*(values[n] for n in step.inputs))
            values.update(zip(step.outputs, results, strict=True))
        return tuple(values[n] for n in self.results)

    @property
    def supported(self) -> bool:
        """True if every kernel has machine code (none runs in the interpreter for want of a
        schedule)."""
        return all(step.family is not None for step in self.steps)

    def explain(self) -> ProgramReport:
        """Kernels, channels and compiled forms so far."""
        kernels = []
        for step in self.steps:
            channels = step.channels
            how = "compiled" if step.family else f"interpreted: {step.reason}"
            report = KernelReport(step.graph.name, print_graph(step.graph), channels, how)
            if step.family is not None:
                report.variants = list(step.family.reports)
            kernels.append(report)
        shallow = self.deep if len(self.steps) == 1 else []
        return ProgramReport(self.module.main.name, kernels, shallow)


__all__ = ["Program", "ProgramReport", "Step"]
