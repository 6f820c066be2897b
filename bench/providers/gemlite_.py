"""gemlite: Triton kernels for weights of 1, 2, 4 or 8 bits, with its own search for schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

BITS = (1, 2, 4, 8)
MULTIPLE = 32


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits not in BITS:
        raise NotOffered(f"has no product with {case.bits}-bit weights")
    if case.outputs % MULTIPLE or case.inner % MULTIPLE:
        raise NotOffered(f"needs multiples of {MULTIPLE}")
    return [Form(f"A16W{case.bits}", partial(_product, case, inputs))]


def _product(case: LowBit, inputs: Weights) -> Call:
    from gemlite.core import DType, GemLiteLinearTriton

    kinds = {torch.bfloat16: DType.BF16, torch.float16: DType.FP16, torch.float32: DType.FP32}
    kind = kinds[inputs.x.dtype]
    layer: Any = GemLiteLinearTriton(
        W_nbits=case.bits,
        group_size=case.group,
        in_features=case.inner,
        out_features=case.outputs,
        input_dtype=kind,
        output_dtype=kind,
    )
    scales = inputs.scales.to(inputs.x.dtype)
    layer.pack(inputs.codes, scales, case.zero)
    return partial(layer, inputs.x)


OFFERS = {"gemlite": {"lowbit": lowbit}}
