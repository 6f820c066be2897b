"""One case run and compared: what a back end gives against the exact results and their bounds."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Module
from tilewright.ir.errors import BindError, TilewrightError, UnsupportedError
from tilewright.ir.parser import parse
from tilewright.runtime.program import Program
from tilewright.runtime.verification.bounds import bounded
from tilewright.runtime.verification.case import Call, Case, shapes_of, specs_of
from tilewright.runtime.verification.compare import Comparison, compare, to_numpy
from tilewright.runtime.verification.rounded import Rounded
from tilewright.runtime.verification.values import make_inputs

PROGRAMS_KEPT = 8


@dataclass(frozen=True)
class Outcome:
    """What became of a case. ``status``: ok, wrong, unsteady, error, refused; from outside of the
    process also crash and hang. ``interpreted``: kernels that no schedule covers."""

    status: str
    message: str = ""
    call: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    interpreted: int = 0
    elements: int = 0
    unspecified: int = 0

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "refused", "explained")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Outcome:
        return Outcome(**{**data, "comparison": Comparison(**data["comparison"])})


def exact_results(graph: Graph, call: Call, inputs: Sequence[torch.Tensor]) -> tuple[Rounded, ...]:
    """The oracle's results for a call with their bounds. Sizes are what the inputs say, where they
    say it: K * G = 0 says nothing of G, whatever the call had in mind."""
    try:
        sizes = bind_sizes(graph, [tuple(x.shape) for x in inputs])
    except BindError:
        sizes = dict(call.sizes)
    return bounded(graph, *map(to_numpy, inputs), sizes=sizes)


def inputs_of(graph: Graph, call: Call) -> list[torch.Tensor]:
    """The tensors of a call."""
    return make_inputs(shapes_of(graph, call.sizes), specs_of(graph, call.inputs), call.seed)


@lru_cache(maxsize=PROGRAMS_KEPT)
def _program(text: str, target: str | None, backend: str) -> tuple[Module, Program]:
    module = parse(text)
    return module, Program(module, target=target, backend=backend)


def check_case(case: Case) -> Outcome:
    """Compiles and calls; every call twice, since a result that changes was never right."""
    try:
        module, program = _program(case.text, case.target, case.backend)
    except UnsupportedError as error:
        return Outcome("refused", error.message)
    except TilewrightError as error:
        return Outcome("error", f"compiling: {error}")
    except Exception as error:  # any other is a bug of the compiler
        return Outcome("error", f"compiling: {_last_lines(error)}")
    worst, elements, unspecified = Comparison(), 0, 0
    for at, call in enumerate(case.calls):
        found = _check_call(module.main, program, call)
        if isinstance(found, Outcome):
            return Outcome(found.status, found.message, at)
        elements, unspecified = elements + found.elements, unspecified + found.unspecified
        if not found.good:
            return Outcome("wrong", "", at, found)
        worst = found if found.ratio > worst.ratio else worst
    interpreted = sum(step.family is None for step in program.steps)
    return Outcome("ok", "", 0, worst, interpreted, elements, unspecified)


def _check_call(graph: Graph, program: Callable[..., Any], call: Call) -> Comparison | Outcome:
    inputs = inputs_of(graph, call)
    try:
        exact = exact_results(graph, call, inputs)
    except UnsupportedError as error:
        return Outcome("refused", error.message)
    try:
        results = _poisoned(exact, lambda: program(*inputs))
        again = program(*inputs)
    except UnsupportedError as error:
        return Outcome("refused", error.message)
    except Exception as error:  # inputs fit: any error is a bug
        return Outcome("error", f"calling: {_last_lines(error)}")
    found = compare([to_numpy(x) for x in results], exact)
    if found.good and not all(_same_bits(a, b) for a, b in zip(results, again, strict=True)):
        return Outcome("unsteady", "two calls with the same inputs give different bits")
    return found


def _poisoned(exact: Sequence[Rounded], call: Callable[[], Any]) -> Any:
    """A call whose results lie, if the allocator gives freed memory out again, where NaN were:
    what a kernel does not write shows."""
    for want in exact:
        torch.full(np.shape(want.x), float("nan"))
    return call()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(np.array_equal(to_numpy(a), to_numpy(b), equal_nan=a.dtype.is_floating_point))


def _last_lines(error: Exception) -> str:
    """Kind, message and the innermost places of an error."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {error} ({places})"
