"""torchao: integers of the same codes as weights of a linear layer, eager and compiled.

On x86 its packed products need a build of its own; what the wheel has is a byte for each weight. On
GPUs its four bits are torch's own product: see torch-int.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tilewright.bench.providers.inductor import compiled
from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.problem import FLOATS, Call, Form, NotOffered, Problem


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits < 2:
        raise NotOffered("has no symmetric product of one bit")
    key = ("torchao", problem.section, problem.name)

    def eager() -> Call:
        return partial(torch.nn.functional.linear, inputs.x, weight(inputs, case))

    def whole() -> Call:
        return compiled(key, lambda: _linear, inputs.x, weight(inputs, case))

    return [Form("eager", eager), Form("torch.compile", whole)]


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight)


def weight(inputs: Weights, case: LowBit) -> torch.Tensor:
    """Its tensor of the same numbers; with int8 activations where the problem has them."""
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )

    dtype, groups = getattr(torch, f"int{case.bits}"), PerGroup(case.group)
    if case.activation == "int8":
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=groups
        )
    else:
        config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=groups)
    where, floats = torch.device(case.device), FLOATS[case.floats]
    layer = torch.nn.Linear(case.inner, case.outputs, bias=False, device=where, dtype=floats)
    quantize_(layer, config)
    made: Any = layer.weight
    centred = inputs.codes.to(torch.int16) - inputs.zero
    made.qdata.copy_(centred.to(torch.int8))
    made.scale.copy_(inputs.scales.view_as(made.scale))
    made.zero_point.zero_()
    found: torch.Tensor = made.detach()
    return found


OFFERS = {"torchao": {"lowbit": lowbit}}
