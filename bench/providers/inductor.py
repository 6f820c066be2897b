"""torch.compile with Inductor: what the eager side writes out, compiled whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tilewright.bench.providers.eager import written_out
from tilewright.bench.suites.attention import Inputs
from tilewright.bench.suites.experts import first_result
from tilewright.bench.suites.fused import Tensors
from tilewright.bench.suites.models import Given as GivenModel
from tilewright.bench.suites.problem import Form, NotOffered, Problem

COMPILED_FORMS = 64  # of one function, before Dynamo gives it up; 8 by default
_kept: dict[tuple[str, ...], Callable[..., Any]] = {}


def compiled(
    key: tuple[str, ...],
    function: Callable[[], Callable[..., Any]],
    *inputs: Any,
    options: dict[str, Any] | None = None,
) -> Callable[[], Any]:
    """A call of ``function()``, compiled for these inputs' shapes with Inductor's ``options``; once
    for each ``key``, since the C++ compiler takes seconds, and other inputs need no other code."""
    torch._dynamo.config.recompile_limit = COMPILED_FORMS
    if key not in _kept:
        _kept[key] = torch.compile(function(), dynamic=False, fullgraph=True, options=options)
    return partial(_kept[key], *inputs)


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    key = ("inductor", problem.section, problem.name)
    return [Form("default", lambda: compiled(key, lambda: written_out(problem.case), *inputs))]


def experts(problem: Problem, inputs: Any) -> list[Form]:
    if problem.section != "routing":
        raise NotOffered("what it compiles are transformers' layers; see there")
    side = problem.case.routing.torch_side(problem.case.product)
    key = ("inductor", problem.section, problem.name)
    return [Form("default", lambda: compiled(key, lambda: side, *inputs), first_result)]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    """On a GPU with its search for the fastest product, too: what it has of cuBLAS and Triton."""
    key = ("inductor", problem.section, problem.name)
    function = problem.case.function
    forms = [Form("default", lambda: compiled(key, lambda: function, *inputs))]
    if problem.case.device != "cpu":
        searched = (*key, "searched")
        options = {"max_autotune": True}
        forms.append(
            Form(
                "max_autotune",
                lambda: compiled(searched, lambda: function, *inputs, options=options),
            )
        )
    return forms


def models(problem: Problem, inputs: GivenModel) -> list[Form]:
    """Compiled again in each sitting, since the model is new: from Inductor's cache."""

    def make() -> Callable[[], Any]:
        whole = torch.compile(inputs.model, dynamic=False)
        return lambda: inputs.call(whole)

    return [Form("default", make)]


OFFERS = {
    "inductor": {"attention": attention, "experts": experts, "fused": fused, "models": models}
}
