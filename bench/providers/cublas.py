"""cuBLAS and cuBLASLt through torch: products with weights as floats, with the epilogue that
cuBLASLt has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tilewright.bench.suites.fused import Fused, Tensors, linear_gelu
from tilewright.bench.suites.lowbit import Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

LIBRARIES = ("cublas", "cublaslt")


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    """What a product costs whose weights are not quantised."""
    name = problem.case.floats

    def make(library: str) -> Call:
        weight = inputs.values().to(inputs.x.dtype)
        return _with(library, partial(torch.nn.functional.linear, inputs.x, weight))

    return [
        Form(f"{library}, {name} weights", partial(make, library), float_weights=True)
        for library in LIBRARIES
    ]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    """The product whose bias and GELU cuBLASLt adds by itself."""
    case: Fused = problem.case
    if case.function is not linear_gelu:
        raise NotOffered("has no such epilogue")

    def make() -> Call:
        x, weight, bias = inputs
        return partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)

    return [Form("cublaslt, GELU epilogue", make)]


def _with(library: str, call: Callable[[], Any]) -> Call:
    def chosen() -> Any:
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library(library)
        try:
            return call()
        finally:
            torch.backends.cuda.preferred_blas_library(before)

    return chosen


OFFERS = {"cublas": {"lowbit": lowbit, "fused": fused}}
