"""A whole program: tensor graph in, kernels and their wiring inside, torch tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NoReturn

import torch

from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.printer import print_graph
from tilewright.ir.target import named_target
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.channels import find_channels
from tilewright.passes.fuse_reroute import whole_routing
from tilewright.passes.inner_products import inner_products
from tilewright.passes.pipeline import kernel_passes, run_passes
from tilewright.passes.split_sums import result_names
from tilewright.passes.to_tile import kernel_to_tile
from tilewright.passes.to_tile.kernel_info import is_routing
from tilewright.passes.to_tile.made import remakes
from tilewright.passes.to_tile.orders import ordered_target
from tilewright.runtime.backends import MAKERS, choose_backend, run_from_device, run_on_host
from tilewright.runtime.cuda.repeat import Repeated, kinds
from tilewright.runtime.determinism import (
    check_backend,
    device_backend,
    level,
    refuse_unordered,
    using,
)
from tilewright.runtime.family import Call, KernelFamily
from tilewright.runtime.gpu_targets import (
    GPU_BACKENDS,
    device_target,
    forced_schedule,
    pretended,
)
from tilewright.runtime.logs import PROGRAMS
from tilewright.runtime.made_again import MadeAgain
from tilewright.runtime.report import KernelReport, ProgramReport
from tilewright.runtime.routing import with_few_tokens, with_shared_counts
from tilewright.runtime.targets import program_target, require_runnable
from tilewright.runtime.tracing.recorder import now
from tilewright.runtime.tuned import depends_on
from tilewright.runtime.verification.first_calls import CheckedCall, checked_option


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

    ``module`` holds one tensor-level graph. ``target`` and ``backend`` default to this machine and
    to the fastest back end installed. ``verify=True`` holds the first call of every kind on the CPU
    to the oracle's bound, "always" every call (docs/verify.md): EvaluationError. ``deterministic``
    ("run", "threads", "batch") and ``reproducible`` say what bits may not depend on
    (docs/determinism.md). Raises TargetError, UnsupportedError, BackendMissingError, and
    DeterminismError for what does not keep that level.
    """

    def __init__(
        self,
        module: Module,
        *,
        target: str | None = None,
        backend: str | None = None,
        verify: bool | str = False,
        deterministic: str | None = None,
        reproducible: bool | None = None,
    ) -> None:
        self.module = module
        self._asked = target, backend
        self.level = level(deterministic, reproducible)
        self.backend = choose_backend(backend)
        check_backend(self.level, self.backend)
        self.target = program_target(target, self.backend)
        self._on_gpu: dict[object, Program] = {}
        self._on_device = Repeated(lambda x: self._for_device(x.device)._call, depends_on)
        if self.backend == "numba":
            self.target = named_target("scalar")  # plain loops, one element at a time
        if self.backend == "mlir":
            require_runnable(self.target)
        self._tensors = Module(())  # in the parts that streams are made of
        self._as_written = Module(())  # the streams before any rule was applied
        self._uncut = Module(())  # the streams before they were cut into kernels
        self.results: tuple[str, ...] = ()
        passes = kernel_passes(self.target)
        kernels = run_passes(module, passes, after=lambda step, m: self._watch(step.name, m))
        self.inputs = tuple(p.hint for p in module.main.params)
        self.steps = [self._step(graph) for graph in kernels.graphs]
        again = self._made_again()
        self._choices = again
        self._single = again or self._only_step() or self._routing(kernels)
        if checked_option(verify):
            self._single = CheckedCall(self, module, self._call, verify)
        names = ", ".join(step.graph.name for step in self.steps)
        PROGRAMS.debug(
            "%s for %s by %s: kernels %s", module.main.name, self.target.name, self.backend, names
        )

    def _watch(self, name: str, module: Module) -> None:
        if name == "canonicalise":
            self._tensors = module
        if name == "to_stream":
            self._as_written = module
        if name == "reorder":
            self._uncut = module
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
            alone = inputs == self.inputs and outputs == self.results
            whole = self._on_host(self.module.main) if alone else _as_a_whole
            make = with_shared_counts(MAKERS[self.backend])
            family = KernelFamily(graph, self.target, make, whole, self.backend, self.level)
            wanted = is_routing(graph) or self.level.order
            if wanted and not family.static_names:
                self._try(graph)
        except UnsupportedError as error:
            refuse_unordered(self.level, error)
            if self.backend in GPU_BACKENDS:
                raise
            return Step(graph, inputs, outputs, self._on_host(graph), None, error.message)
        except BindError as error:
            return Step(graph, inputs, outputs, _as_a_whole, None, error.message)
        return Step(graph, inputs, outputs, family, family)

    def _try(self, graph: Graph) -> None:
        """Raises UnsupportedError now for what no form of a routing kernel covers."""
        units = {p.hint: len(getattr(p.type, "shape", ())) - 1 for p in graph.params}
        order = self.level.order
        target = ordered_target(graph, self.target, 0, order)
        kernel_to_tile(graph, target, 0, units, order=order)

    def _on_host(self, graph: Graph) -> Call:
        if self.backend in GPU_BACKENDS:
            return partial(run_from_device, graph)
        return lambda *tensors: run_on_host(graph, *tensors)

    def _only_step(self) -> Call | None:
        """The call of the single kernel if its inputs and results are the program's own."""
        if len(self.steps) != 1 or self.steps[0].inputs != self.inputs:
            return None
        if self.steps[0].outputs != self.results or self.steps[0].call is _as_a_whole:
            return None
        return self.steps[0].call

    def _routing(self, kernels: Module) -> Call | None:
        """One kernel for few tokens where all route them, the steps for more."""
        whole = whole_routing(self._uncut, kernels)
        if whole is None or not self.supported or self.level.promises("batch"):
            return None
        fits = tuple(p.hint for p in whole.params) == self.inputs
        if not fits or tuple(v.hint for v in whole.results) != self.results:
            return None
        make = with_few_tokens(MAKERS[self.backend], self._in_steps)
        empty = self._on_host(self.module.main)
        return KernelFamily(whole, self.target, make, empty, self.backend, self.level)

    def _made_again(self) -> MadeAgain | None:
        """Keys and values that the program makes itself: in memory or inside a kernel."""
        if self.level.promises("threads"):  # the choice depends on how many there are
            return None
        graph = self._tensors.main
        some = len(self.steps) > 1 or bool(remakes(self.steps[0].graph))
        inner = inner_products(graph) if some and self.backend not in GPU_BACKENDS else None
        if inner is None or not inner.along or not self.supported:
            return None

        def compiled(module: Module) -> Program:
            target, backend = self._asked
            with using(self.level):
                return Program(module, target=target, backend=backend)

        return MadeAgain(graph, inner, self._in_steps, self.target, compiled)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results, newly allocated. Raises BindError if the inputs do not fit."""
        if now.recorder is not None and now.recorder.wants_program():
            return now.recorder.program(self, tensors)
        gpu = tensors and (tensors[0].is_cuda or pretended.on or pretended.backend == "cuda-host")
        if gpu and self.backend not in GPU_BACKENDS:
            if now.recorder is not None:  # repeated calls would pass the kernels by
                return self._for_device(tensors[0].device)._call(*tensors)
            return self._on_device(*tensors)
        if self._single is not None:
            return self._single(*tensors)
        return self._in_steps(*tensors)

    @property
    def _call(self) -> Call:
        """What a call does once it is known where."""
        return self._single or self._in_steps

    def repeats(self, kind: object) -> Call | None:
        """What repeats calls on a GPU of a kind: ``kinds`` of their tensors and ``depends_on()``.
        None where none came twice."""
        return self._on_device.bound(kind)

    def _for_device(self, device: torch.device) -> Program:
        """The same program for a GPU. Raises UnsupportedError if it has parts without a kernel."""
        target = device_target(device.index)
        key = target.name, forced_schedule(), pretended.backend
        if key not in self._on_gpu:
            backend = device_backend(self.level, pretended.backend)
            with using(self.level):
                self._on_gpu[key] = Program(self.module, target=target.name, backend=backend)
        return self._on_gpu[key]

    def _in_steps(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensors) != len(self.inputs):
            names = ", ".join(f"%{n}" for n in self.inputs)
            given = len(tensors)
            raise BindError(f"{self.module.main.name} takes {names}; {given} inputs given")
        values = dict(zip(self.inputs, tensors, strict=True))
        try:
            for step in self.steps:
                results = step.call(*(values[n] for n in step.inputs))
                values.update(zip(step.outputs, results, strict=True))
        except _AsAWholeError:
            return self._on_host(self.module.main)(*tensors)
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
        choices = []
        if self._choices is not None:
            choices = self._choices.described()
            for program in self._choices.programs.values():
                kernels += program.explain().kernels
        words = self.level.words if self.level.name else ""
        return ProgramReport(self.module.main.name, kernels, shallow, choices, words)


class _AsAWholeError(Exception):
    """The host has to run the program as it is written: a kernel of several is called with an empty
    axis (its quotients of sums, moved past each other, would be 0 / 0), or has results of a size
    that only inputs of the program have that the kernel does not read."""


def _as_a_whole(*_: torch.Tensor) -> NoReturn:
    raise _AsAWholeError


__all__ = ["Program", "ProgramReport", "Step", "depends_on", "kinds", "now", "pretended"]
