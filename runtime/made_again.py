"""Programs that make keys or values themselves: through memory or inside one kernel, by the sizes
of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_remake import Remake
from tilewright.ir.printer import print_module
from tilewright.ir.target import Target
from tilewright.passes.inner_products import Inner
from tilewright.passes.rematerialise import Balance, Fused
from tilewright.passes.rematerialise.programs import cost_inside, cost_through_memory, inside
from tilewright.runtime.family import Call
from tilewright.runtime.locks import Guard
from tilewright.runtime.threads import num_threads

if TYPE_CHECKING:
    from tilewright.runtime.program import Program

_MOST = 1024  # sizes whose choice is remembered
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Choice:
    """Whether calls of some sizes make products ``inside`` a kernel, as ``fused`` says, and why."""

    inside: bool
    fused: Fused
    reason: str


class MadeAgain:
    """Calls ``steps``, or a program with the ``inner`` products made inside its loop: what costs
    less, or what there are kernels for. ``compiled`` makes a program of a module.

    Safe to call from several threads. A call raises UnsupportedError if neither has kernels.
    """

    def __init__(
        self,
        graph: Graph,
        inner: Inner,
        steps: Call,
        target: Target,
        compiled: Callable[[Module], Program],
    ) -> None:
        self.graph, self.inner, self.steps, self.compiled = graph, inner, steps, compiled
        self.target = target
        self.programs: dict[str, Program] = {}  # by their text
        self.choices: dict[tuple[int, ...], Choice] = {}  # by threads and sizes
        self._guard = Guard()

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        if not all(isinstance(x, torch.Tensor) for x in tensors):
            return self.steps(*tensors)  # which say what is wrong
        bound = bind_sizes(self.graph, [tuple(x.shape) for x in tensors])
        sizes = {name: bound[name] for name in self.graph.sizes}
        choice = self.choice(sizes)
        try:
            return self._run(choice, tensors)
        except UnsupportedError as error:
            other = replace(choice, inside=not choice.inside, reason=f"else: {error.message}")
            if not _remakes(choice.fused):
                raise
            found = self._run(other, tensors)
        self.choices[_key(sizes)] = other
        return found

    def choice(self, sizes: dict[str, int]) -> Choice:
        """How a call of these sizes goes."""
        key = _key(sizes)
        found = self.choices.get(key)
        if found is None:
            if len(self.choices) >= _MOST:
                self.choices.clear()
            found = self.choices.setdefault(key, self._choose(sizes))
        return found

    def described(self) -> list[str]:
        """The choices so far in words."""
        made = ", ".join(f"%{op.results[0].hint}" for op in self.inner.along)
        lines = []
        for (threads, *sizes), choice in self.choices.items():
            names = " ".join(f"{n}={size}" for n, size in zip(self.graph.sizes, sizes, strict=True))
            where = "made inside one kernel" if choice.inside else "made once, through memory"
            lines.append(f"{names}, {threads} threads: {made} {where} ({choice.reason})")
        return lines

    def _choose(self, sizes: dict[str, int]) -> Choice:
        balance = Balance.of(self.target, num_threads())
        rows = balance.item_rows
        fused = inside(self.graph, self.inner, sizes, rows)
        if self.inner.coded:  # no kernel unpacks codes for memory
            return Choice(_remakes(fused), fused, "their input lies in codes")
        once = cost_inside(fused, self.inner, sizes, rows).seconds(balance)
        kept = cost_through_memory(self.graph, self.inner, sizes).seconds(balance)
        reason = f"{1e3 * once:.3f} ms in one kernel, {1e3 * kept:.3f} ms through memory"
        return Choice(_remakes(fused) and once <= kept and all(sizes.values()), fused, reason)

    def _run(self, choice: Choice, tensors: Tensors) -> Tensors:
        if not choice.inside:
            return self.steps(*tensors)
        program = self._program(choice.fused)
        given = dict(zip((p.hint for p in self.graph.params), tensors, strict=True))
        found = program(*(given[name] for name in program.inputs))
        return tuple(
            x if last is None else torch.einsum(last.equation, x, given[last.weights])
            for x, last in zip(found, choice.fused.last, strict=True)
        )

    def _program(self, fused: Fused) -> Program:
        module = Module((fused.graph,))
        text = print_module(module)
        with self._guard.lock:
            if text not in self.programs:
                self.programs[text] = self.compiled(module)
            program = self.programs[text]
        if not program.supported:
            raise UnsupportedError(f"no kernel: {program.steps[0].reason}")
        return program


def _key(sizes: dict[str, int]) -> tuple[int, ...]:
    return num_threads(), *sizes.values()


def _remakes(fused: Fused) -> bool:
    """False where all products are results, too."""
    return any(isinstance(op, Remake) for op in fused.graph.body.ops)
