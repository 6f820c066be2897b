"""torch.compile(flex_attention), with the block of its masks that it is fastest with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tilewright.bench import mask_workloads as masks
from tilewright.bench.providers.inductor import compiled
from tilewright.bench.suites.attention import Attention, Inputs
from tilewright.bench.suites.problem import Call, Form, Problem

BLOCKS = (128, 32)  # 128 is its default


def attention(problem: Problem, inputs: Inputs) -> list[Form]:
    """Blocks of a mask are found outside of the call, once."""
    case: Attention = problem.case
    mask = case.mods().get("mask_mod") or (masks.causal(case.keys) if case.causal else None)
    blocks = BLOCKS if case.device == "cpu" and case.function else BLOCKS[:1]
    key = ("flex", problem.section, problem.name)
    if mask is None:
        return [Form("no mask", partial(_call, (*key, ""), inputs, case, None, 0))]
    return [
        Form(f"block {block}", partial(_call, (*key, str(block)), inputs, case, mask, block))
        for block in blocks  # large ones suit what is causal, and GPUs
    ]


def _call(key: tuple[str, ...], inputs: Inputs, case: Attention, mask: Any, block: int) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def make() -> Any:
        given: dict[str, Any] = {"score_mod": case.mods()["score_mod"]} if case.score else {}
        if mask is not None:
            shape = None, None, case.queries, case.keys
            given["block_mask"] = create_block_mask(mask, *shape, case.device, BLOCK_SIZE=block)

        def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
            return flex_attention(q, k, v, enable_gqa=case.heads != case.groups, **given)

        return flex

    return compiled(key, make, *inputs)


OFFERS = {"flex": {"attention": attention}}
