"""Which pass, rule or back end makes a program's result leave its bound.

Every stage of a program means something: the interpreter runs it on the same inputs, each operation
rounded to its dtype, and the results are held to the bound of the program as it is written. The
first stage outside is the one to look at.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import TilewrightError
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.printer import print_graph
from tilewright.passes import pipeline
from tilewright.passes.reorder import reorder, reorder_graph
from tilewright.passes.rewrite import for_each_graph
from tilewright.passes.split_sums import result_names
from tilewright.runtime.backends import BACKENDS, MAKERS, lower_variant
from tilewright.runtime.family import KernelFamily
from tilewright.runtime.program import Program
from tilewright.runtime.verification.case import Call
from tilewright.runtime.verification.check import exact_results, inputs_of
from tilewright.runtime.verification.compare import Comparison, compare, to_numpy
from tilewright.runtime.verification.rounded import Rounded

AS_WRITTEN = "as written"
CONTEXT = 2  # lines of a diff around what changed


@dataclass(frozen=True)
class Stage:
    """A stage of the program: what made it, how its result compares with the bound, why it could
    not be run (an error counts as out of the bound), its text. ``changed``: the text did."""

    name: str
    comparison: Comparison
    problem: str = ""
    text: str = ""
    changed: bool = True

    @property
    def good(self) -> bool:
        return not self.problem and self.comparison.good


@dataclass(frozen=True)
class Bisection:
    """All stages, in order: passes, then tile programs and back ends."""

    stages: tuple[Stage, ...]

    @property
    def culprit(self) -> Stage | None:
        """The first that leaves the bound."""
        return next((stage for stage in self.stages if not stage.good), None)

    def difference(self) -> str:
        """What the culprit changed in the program, as a diff; "" for a back end or none."""
        bad = self.culprit
        if bad is None or not bad.text:
            return ""
        before = [s for s in self.stages[: self.stages.index(bad)] if s.text]
        if not before:
            return ""
        old, new = before[-1].text.splitlines(), bad.text.splitlines()
        lines = difflib.unified_diff(old, new, "before", f"after {bad.name}", "", "", CONTEXT, "")
        return "\n".join(lines)


def bisect(
    module: Module,
    call: Call,
    *,
    backends: Sequence[str] = BACKENDS,
    target: str | None = None,
    watch: Callable[[Stage], None] = lambda _: None,
) -> Bisection:
    """Runs every stage of a tensor-level program for one call. ``watch`` is called with each."""
    inputs = inputs_of(module.main, call)
    exact = exact_results(module.main, call, inputs)
    stages: list[Stage] = []

    def keep(stage: Stage) -> None:
        stages.append(stage)
        watch(stage)

    run = _Runner(module, call, inputs, exact)
    kernels: Module | None = None
    text = ""
    for name, made in run.steps():
        now = str(made)
        keep(run.stage(name, lambda made=made: run.module(made), now, now != text))  # type: ignore[misc]
        text, kernels = now, made
    if run.broken is not None:
        keep(run.broken)
    elif kernels is not None:
        for stage in run.back_ends(backends, target):
            keep(stage)
    return Bisection(tuple(stages))


@dataclass
class _Runner:
    """Runs stages of one program on one call's inputs."""

    given: Module
    call: Call
    inputs: Sequence[torch.Tensor]
    exact: tuple[Rounded, ...]
    broken: Stage | None = None  # a pass that raises
    names: tuple[str, ...] = ()  # of the results, before streams are cut into kernels

    def steps(self) -> Iterator[tuple[str, Module]]:
        """The module as written, and after every pass and every rule of ``reorder``."""
        module = self.given
        yield AS_WRITTEN, module
        for step in pipeline.TO_KERNELS:
            try:
                if step.run is reorder:
                    yield from _rules(module)
                module = step.run(module)
            except (TilewrightError, AssertionError, ValueError, KeyError, IndexError) as error:
                problem = f"{type(error).__name__}: {error}"
                self.broken = Stage(step.name, Comparison(), problem)
                return
            if module.main.level == "stream" and step.name != "partition":
                self.names = result_names(module)
            yield step.name, module

    def stage(self, name: str, run: Callable[[], Any], text: str, changed: bool) -> Stage:
        """A stage from what gives its results."""
        try:
            return Stage(name, compare(run(), self.exact), "", text, changed)
        except (TilewrightError, AssertionError, ValueError, KeyError, IndexError) as error:
            return Stage(name, Comparison(), f"{type(error).__name__}: {error}", text, changed)

    def module(self, module: Module) -> list[Any]:
        """The results of a module's graphs one after the other, by the interpreter."""
        arrays = [to_numpy(x) for x in self.inputs]
        values: dict[str, Any] = {
            p.hint: x for p, x in zip(self.given.main.params, arrays, strict=True)
        }
        if module.main.level == "graph":
            return list(evaluate_graph(module.main, *arrays, sizes=dict(self.call.sizes)))
        for graph in module.graphs:
            sizes = _known_sizes(graph, self.call.sizes)
            found = evaluate_graph(graph, *(values[p.hint] for p in graph.params), sizes=sizes)
            values.update(zip((v.hint for v in graph.results), found, strict=True))
        return [values[n] for n in self.names]

    def back_ends(self, names: Sequence[str], target: str | None) -> Iterator[Stage]:
        """For every target that the back ends compile for: tile programs by the interpreter, then
        by the back ends."""
        done: set[str] = set()
        for name in names:
            if name == "interpreter":
                continue
            program = Program(self.given, target=target, backend=name)
            if program.target.name not in done:
                done.add(program.target.name)
                yield self._tiles(program)
            yield self.stage(
                f"{name} for {program.target.name}",
                lambda program=program: [to_numpy(x) for x in program(*self.inputs)],  # type: ignore[misc]
                "",
                True,
            )
        if not done:
            yield self._tiles(Program(self.given, target=target, backend="interpreter"))

    def _tiles(self, program: Program) -> Stage:
        """The tile programs of a program's kernels, run by the interpreter; their text."""
        wanted = program.target
        values = dict(zip(program.inputs, self.inputs, strict=True))
        texts: list[str] = []

        def run() -> list[Any]:
            for step in program.steps:
                given = [values[n] for n in step.inputs]
                call = step.call
                if step.family is not None:
                    family = KernelFamily(
                        step.graph, wanted, MAKERS["interpreter"], None, "interpreter"
                    )
                    key = family.key(family.completed(tuple(given)))
                    texts.append(print_graph(lower_variant(family.variant(key), wanted)))
                    call = family
                values.update(zip(step.outputs, call(*given), strict=True))
            return [to_numpy(values[n]) for n in program.results]

        made = self.stage(f"to_tile for {wanted.name}", run, "", True)
        return Stage(made.name, made.comparison, made.problem, "\n".join(texts))


def _rules(module: Module) -> list[tuple[str, Module]]:
    """The module after every rule of ``reorder`` that changes it."""
    out: list[tuple[str, Module]] = []
    done: dict[str, Graph] = {}

    def watched(graph: Graph) -> Graph:
        def watch(rule: str, after: Graph) -> None:
            graphs = [done.get(g.name, g) for g in module.graphs]
            now = [after if g.name == after.name else g for g in graphs]
            out.append((f"reorder: {rule}", Module(tuple(now))))

        done[graph.name] = reorder_graph(graph, watch)
        return done[graph.name]

    for_each_graph(module, watched, "stream")
    return out


def _known_sizes(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """The values of the names that a graph has."""
    return {n: v for n, v in sizes.items() if n in graph.sizes}
