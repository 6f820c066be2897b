"""The adapters' demo: a small random Qwen3-MoE, and adapters as ESFT would train and save them."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tilewright.bench.llama import TEXT
from tilewright.experts import record_choices, select_experts

ADAPTERS = ("law", "math", "poems")
_BYTES = 256  # the vocabulary: every byte is a token
_TASK = 256  # tokens whose routing chooses an adapter's experts
_THRESHOLD = 0.6  # of all gate scores: ESFT's p
_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """What ``Qwen3MoeConfig`` needs to know; tokens of a prompt; the most experts that an adapter
    brings in a layer."""

    hidden: int
    layers: int
    experts: int
    chosen: int
    intermediate: int
    prompt: int
    per_slot: int


BIG = Size(256, 6, 32, 4, 192, 64, 8)  # 29.7 M parameters, 28.3 M of them in experts
SMALL = Size(64, 2, 8, 2, 48, 12, 3)


def build(size: Size) -> Any:
    """The model in f32, random, with our experts and torch's fused attention."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise SystemExit("The demo needs transformers: pip install 'tilewright[demo]'") from None
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=_BYTES,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=size.experts,
        num_experts_per_tok=size.chosen,
        moe_intermediate_size=size.intermediate,
        norm_topk_prob=True,
        initializer_range=size.hidden**-0.5,  # keeps the size of a vector through every product
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", experts_implementation="tilewright"
    ).eval()
    with torch.no_grad():  # else a token says more than all layers, and every one repeats itself
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0 if "_proj" in name else 1.0)
    return model


def prompts(sequences: int, length: int) -> torch.Tensor:
    """Consecutive pieces of the text as tokens, [sequences, length]."""
    return _text(0, sequences * length).reshape(sequences, length)


def task_text(at: int) -> torch.Tensor:
    """The text of task number ``at``, [1, 256]."""
    return _text(1024 + at * _TASK, _TASK)[None]


def _text(start: int, length: int) -> torch.Tensor:
    data = TEXT.read_bytes()[start : start + length]
    assert len(data) == length, f"{TEXT} has only {start + len(data)} bytes"
    return torch.tensor(list(data))


def write_adapter(model: Any, text: torch.Tensor, path: Path, seed: int, size: Size) -> None:
    """Saves an adapter in ESFT's layout: of each layer but one the experts that the text's tokens
    use most. In place of a training, noise as large as the weights is added."""
    save_file: Any = importlib.import_module("safetensors.torch").save_file
    with record_choices(model) as choices:
        model(text)
    chosen = select_experts(choices, size.experts, _THRESHOLD, most=size.per_slot)
    del chosen[seed % size.layers]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, experts in chosen.items():
        for e in experts:
            for name, matrix in zip(_NAMES, _matrices(model, int(layer), e), strict=True):
                noise = torch.randn(matrix.shape, generator=generator) * matrix.std()
                key = f"model.layers.{layer}.mlp.experts.{e}.{name}.weight"
                tensors[key] = (matrix + noise) / 2**0.5
    save_file(tensors, path)


def merge(model: Any, path: Path) -> Any:
    """Writes a file's experts into the model, without anything of ours."""
    load_file: Any = importlib.import_module("safetensors.torch").load_file
    for key, data in load_file(path).items():
        parts = key.split(".")
        matrices = dict(zip(_NAMES, _matrices(model, int(parts[2]), int(parts[5])), strict=True))
        matrices[parts[6]].copy_(data)
    return model


def _matrices(
    model: Any, layer: int, expert: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate and up [I, H] and down [H, I] of an expert, as views."""
    experts = model.model.layers[layer].mlp.experts
    gate, up = experts.gate_up_proj[expert].chunk(2)
    return gate, up, experts.down_proj[expert]


def expert_bytes(model: Any) -> int:
    """Of the experts of all layers."""
    return sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
