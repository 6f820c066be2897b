"""Marlin as vLLM carries it: products of bf16 with weights of 4 and 8 bits (Frantar et al., MARLIN,
2024; repacked as GPTQ's weights are)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tilewright.bench.suites.lowbit import LowBit, Weights
from tilewright.bench.suites.problem import Call, Form, NotOffered, Problem

TYPES = {4: "uint4b8", 8: "uint8b128"}  # with their zero in the middle
OUTPUTS, INNER = 64, 128  # whose multiples it takes


def lowbit(problem: Problem, inputs: Weights) -> list[Form]:
    case: LowBit = problem.case
    if case.bits not in TYPES:
        raise NotOffered(f"has no product with {case.bits}-bit weights")
    if case.outputs % OUTPUTS or case.inner % INNER:
        raise NotOffered(f"needs multiples of {OUTPUTS} outputs and {INNER} inputs")
    return [Form(TYPES[case.bits], partial(_product, case, inputs))]


def gptq_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [N, K] as GPTQ keeps them: int32 [K * bits / 32, N], the first of a word's k in
    its lowest bits."""
    outputs, inner = codes.shape
    each = 32 // bits
    parts = codes.T.reshape(inner // each, each, outputs).to(torch.int64)
    shifts = bits * torch.arange(each, device=codes.device)[:, None]
    words = (parts << shifts).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _product(case: LowBit, inputs: Weights) -> Call:
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils as marlin
    from vllm.scalar_type import scalar_types

    device = inputs.x.device
    none: Any = marlin.marlin_make_empty_g_idx(device)
    words = gptq_words(inputs.codes, case.bits)
    scales = inputs.scales.T.contiguous().to(inputs.x.dtype)
    return partial(
        marlin.apply_gptq_marlin_linear,
        input=inputs.x,
        weight=ops.gptq_marlin_repack(words, none, case.inner, case.outputs, case.bits),
        weight_scale=marlin.marlin_permute_scales(scales, case.inner, case.outputs, case.group),
        weight_zp=none,
        g_idx=none,
        g_idx_sort_indices=none,
        workspace=marlin.marlin_make_workspace_new(device),
        wtype=getattr(scalar_types, TYPES[case.bits]),
        output_size_per_partition=case.outputs,
        input_size_per_partition=case.inner,
        is_k_full=True,
    )


OFFERS = {"marlin": {"lowbit": lowbit}}
