"""Triton's products: Inductor's templates of them, the schedule found by its own search."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tilewright.bench.providers.inductor import compiled
from tilewright.bench.suites.fused import Tensors
from tilewright.bench.suites.lowbit import Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

OPTIONS = {"max_autotune": True, "max_autotune_gemm_backends": "TRITON"}


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    """With weights as floats: it has no template for codes."""

    def make() -> Call:
        weight = inputs.values().to(inputs.x.dtype)
        return _searched(problem, torch.nn.functional.linear, inputs.x, weight)

    return [Form(f"{problem.case.floats} weights", make, float_weights=True)]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    if problem.section != "products":
        raise NotOffered("rows have no templates; see inductor")
    return [Form("templates", partial(_searched, problem, problem.case.function, *inputs))]


def _searched(problem: Problem, function: Callable[..., Any], *inputs: torch.Tensor) -> Call:
    key = ("triton", problem.section, problem.name)
    return compiled(key, lambda: function, *inputs, options=OPTIONS)


OFFERS = {"triton": {"lowbit": lowbit, "fused": fused}}
