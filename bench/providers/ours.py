"""Ours: the public calls, as anybody would write them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import tilewright
from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.experts import Experts, Given, first_result, first_tokens
from tilewright.bench.suites.fused import Fused, Tensors
from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.models import Given as GivenModel
from tilewright.bench.suites.problem import Call, Form, Problem
from tilewright.experts import register_experts
from tilewright.lowbit import prepared

_kept: dict[tuple[str, ...], Callable[..., Any]] = {}


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    case: Attention = problem.case
    grouped = case.heads != case.groups
    options: dict[str, Any] = {"is_causal": case.causal, "enable_gqa": grouped, **case.mods()}
    call = partial(tilewright.attention, *inputs, **options)
    return [Form("attention", lambda: call)]


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case

    def make() -> Call:
        weight = tilewright.QuantizedTensor.from_codes(
            inputs.codes,
            inputs.scales.half(),
            dtype=f"u{case.bits}",
            group=case.group,
            zero_point=inputs.zero,
        )
        if case.device == "cpu" and case.floats == "f32":
            weight = prepared(weight, case.activation)
        return partial(tilewright.linear, inputs.x, weight, activation=case.activation)

    return [Form(f"linear, {case.activation}", make)]


def experts(problem: Problem, inputs: Any) -> list[Form]:
    if problem.section == "routing":
        return _routing(problem, inputs)
    case: Experts = problem.case
    return [Form("experts", partial(_layer, case, inputs), first_tokens)]


def _layer(case: Experts, given: Given) -> Call:
    register_experts()
    module = given.module
    if case.bits:
        holder = torch.nn.Module()
        holder.experts = copy.deepcopy(module)  # others have the same inputs
        width = f"u{case.bits}"
        tilewright.quantize(holder, width, group=case.group, activation=case.activation)
        module = holder.experts
    module.config._experts_implementation = "tilewright"

    def call() -> Any:
        module.config._experts_implementation = "tilewright"  # others set it, too
        return module(*given.inputs)

    return call


def _routing(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> list[Form]:
    def make() -> Call:
        key = ("routing", problem.name)
        if key not in _kept:
            _kept[key] = problem.case.routing.program(problem.case.product)
        return partial(_kept[key], *inputs[:-2], inputs[-2].int(), inputs[-1].int())

    return [Form("program", make, first_result)]


def fused(problem: Problem, inputs: Tensors) -> list[Form]:
    case: Fused = problem.case

    def make() -> Call:
        key = ("fused", problem.section, problem.name)
        if key not in _kept:
            _kept[key] = tilewright.compile(case.function)
        return partial(_kept[key], *inputs)

    return [Form("compile", make)]


def models(problem: Problem, inputs: GivenModel) -> list[Form]:
    def make() -> Call:
        compiled = tilewright.compile(inputs.model)
        return lambda: inputs.call(compiled)

    return [Form("compile", make)]


OFFERS = {
    "tilewright": {
        "attention": attention,
        "lowbit": lowbit,
        "experts": experts,
        "fused": fused,
        "models": models,
    }
}
