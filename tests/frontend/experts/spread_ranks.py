"""A small Qwen3-MoE model whose experts are spread over two ranks."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.frontend.experts.ranks import refusal
from tilewright.frontend.experts.spread import spread_experts
from tilewright.frontend.experts.wire import Wire
from tilewright.runtime.placement.evaluate import random_placement
from tilewright.runtime.placement.file import Placement
from tilewright.runtime.placement.topology import Topology

EXPERTS, LAYERS, VOCABULARY = 8, 3, 50


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config).eval()


def prompt(rank: int) -> torch.Tensor:
    """int64 [1, length]; every rank has its own, of another length."""
    return torch.arange(5 + 4 * rank)[None] * 7 % VOCABULARY


def run_spread(rank: int, ranks: int) -> dict[str, Any]:
    model, wire = make_model(), Wire()
    devices = random_placement(LAYERS, Topology(ranks), EXPERTS, 1)
    other = Placement(devices[:2], Topology(ranks))
    refused = refusal(lambda: spread_experts(model, other, wire))
    before = model(prompt(rank)).logits
    spread_experts(model, Placement(devices, Topology(ranks)), wire)
    held = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    logits = model(prompt(rank)).logits
    return {"before": before, "logits": logits, "held": held, "refused": refused}
