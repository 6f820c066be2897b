"""transformers' own implementations of a layer of experts; the fastest is measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tilewright.bench.experts import COPIES, IMPLEMENTATIONS
from tilewright.bench.suites.experts import Experts, Given, first_tokens
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem


def experts(problem: Problem, inputs: Any) -> list[Form]:
    """Where ours has few bits, theirs has the same experts in f32: it has no such layer."""
    if problem.section == "routing":
        raise NotOffered("routes in the model's own code; see torch-eager")
    case: Experts = problem.case
    pairs = case.tokens * case.layer.top
    names: Sequence[str] = (
        IMPLEMENTATIONS if pairs < COPIES else IMPLEMENTATIONS[:2]
    )  # it copies weights by row
    if 16 <= case.tokens <= 256 and case.layer.experts > 16:
        names = names[:1]  # eager, an expert at a time, takes seconds there
    floats = bool(case.bits)
    suffix = ", f32 weights" if floats else ""
    return [Form(f"{n}{suffix}", partial(_call, inputs, n), first_tokens, floats) for n in names]


def _call(given: Given, implementation: str) -> Call:
    def call() -> Any:
        given.module.config._experts_implementation = implementation
        return given.module(*given.inputs)

    return call


OFFERS = {"transformers": {"experts": experts}}
