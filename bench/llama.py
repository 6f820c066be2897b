"""The demo's model and input: a Llama from transformers' own classes, with random weights.

The weights are drawn from a fixed seed and the text lies in the repository: nothing is downloaded.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TEXT = Path(__file__).resolve().parent / "data" / "alice.txt"
_BYTES = 256  # the vocabulary: every byte is a token


@dataclass(frozen=True)
class ModelSize:
    """What ``LlamaConfig`` needs to know. ``groups`` heads of keys serve ``heads`` of queries."""

    hidden: int
    layers: int
    heads: int
    groups: int
    intermediate: int


# 14 layers x (2 x 512 x 512 + 2 x 512 x 256 + 3 x 512 x 1,792) + 2 x 256 x 512: 49.8 M parameters
DEMO = ModelSize(hidden=512, layers=14, heads=8, groups=4, intermediate=1792)
TINY = ModelSize(hidden=128, layers=1, heads=2, groups=1, intermediate=192)


def build_model(size: ModelSize) -> Any:
    """The model in f32, ready for inference, with torch's fused attention ("sdpa").

    The spread 1/sqrt(hidden) keeps the size of a vector through every product. With the smaller one
    that is the default, all tokens come out equal, and comparing them would show nothing.
    """
    transformers = _transformers()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=_BYTES,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        intermediate_size=size.intermediate,
        max_position_embeddings=2048,
        initializer_range=size.hidden**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config).eval()


def new_cache(model: Any) -> Any:
    """An empty cache of keys and values: the one that transformers takes by default."""
    return _transformers().DynamicCache(config=model.config)


def prompt(length: int) -> torch.Tensor:
    """The first bytes of the text as tokens, (1, length)."""
    data = TEXT.read_bytes()[:length]
    assert len(data) == length, f"{TEXT} has only {len(data)} bytes"
    return torch.tensor([list(data)])


def _transformers() -> Any:
    """The package, told to stay off the network before it is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise SystemExit("The demo needs transformers: pip install 'tilewright[demo]'") from None
