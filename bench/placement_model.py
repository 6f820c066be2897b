"""A small mixture-of-experts model, trained on the repository's text for a while, and its routing.

Qwen3-MoE from transformers' own classes, bytes as tokens, random weights at first. A minute of
training gives routers that prefer something, which untrained ones do not.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.bench.llama import TEXT
from tilewright.placement import Trace, record_routing

_BYTES = 256
_LENGTH = 64  # tokens of a training sequence
_BATCH = 16


@dataclass(frozen=True)
class MoeSize:
    """What ``Qwen3MoeConfig`` needs to know; ``steps`` of training at most, in ``seconds``."""

    hidden: int = 128
    layers: int = 6
    experts: int = 16
    choices: int = 2
    intermediate: int = 64
    steps: int = 200
    seconds: float = 60.0
    text: int = 1 << 20  # bytes at most


TINY = MoeSize(hidden=32, layers=3, experts=8, intermediate=16, steps=3, seconds=5.0, text=640)


@dataclass(frozen=True)
class Trained:
    """The routing of the whole text, and the loss before and after in nats per byte."""

    trace: Trace
    steps: int
    losses: tuple[float, float]


def trained_trace(size: MoeSize) -> Trained:
    """Trains with AdamW and the model's own loss for balanced routers, then runs over the text."""
    model = _model(size)
    text = torch.tensor(list(TEXT.read_bytes()[: size.text]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    until, losses = time.monotonic() + size.seconds, []
    for _ in range(size.steps):
        starts = torch.randint(len(text) - _LENGTH, (_BATCH,), generator=draw)
        ids = text[starts[:, None] + torch.arange(_LENGTH)]
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if time.monotonic() > until:
            break
    model.eval()
    whole = text[: len(text) // _LENGTH * _LENGTH].reshape(-1, _LENGTH)
    with torch.no_grad(), record_routing(model) as recorder:
        model(whole)
    return Trained(recorder.trace(), len(losses), (losses[0], losses[-1]))


def _model(size: MoeSize) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=_BYTES,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        moe_intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size.hidden // 4,
        num_experts=size.experts,
        num_experts_per_tok=size.choices,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        initializer_range=size.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.Qwen3MoeForCausalLM(config).train()
    model.set_experts_implementation("grouped_mm")  # the quickest of transformers' own on CPUs
    return model
