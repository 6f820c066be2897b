"""Small random mixture-of-experts models of transformers, and adapters for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

HIDDEN, INTER, EXPERTS, VOCABULARY = 32, 24, 8, 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {
        "intermediate_size": 40,
        "moe_intermediate_size": INTER,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    },
    "Mixtral": {"intermediate_size": INTER, "num_local_experts": EXPERTS},
    "Olmoe": {"intermediate_size": INTER, "num_experts": EXPERTS, "num_experts_per_tok": 3},
    "DeepseekV3": {
        "intermediate_size": 40,
        "moe_intermediate_size": INTER,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "GptOss": {
        "intermediate_size": INTER,
        "num_local_experts": EXPERTS,
        "head_dim": 8,
        "layer_types": ["full_attention"] * 2,
    },
}
Adapter = dict[int, dict[int, dict[str, torch.Tensor]]]


def make(family: str, **changes: Any) -> Any:
    """A model of a family with seeded weights that make experts matter."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family] | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.normal_(0, 0.15)
    return model


def layers_of(model: nn.Module) -> dict[int, Any]:
    """The experts' modules by decoder layer."""
    return {
        int(name.split("layers.")[1].split(".")[0]): module
        for name, module in model.named_modules()
        if name.endswith(".experts")
    }


def adapter(model: nn.Module, seed: int, counts: Mapping[int, int] | None = None) -> Adapter:
    """Random separate matrices for some experts of each layer (by default 1, 2, ...)."""
    generator = torch.Generator().manual_seed(seed)
    found: Adapter = {}
    for place, layer in enumerate(layers_of(model)):
        count = 1 + place if counts is None else counts.get(layer, 0)
        chosen = torch.randperm(EXPERTS, generator=generator)[:count].tolist()
        shapes = {
            "gate_proj": (INTER, HIDDEN),
            "up_proj": (INTER, HIDDEN),
            "down_proj": (HIDDEN, INTER),
        }
        found[layer] = {
            e: {k: torch.randn(s, generator=generator) * 0.15 for k, s in shapes.items()}
            for e in chosen
        }
    return found


def merged(model: Any, weights: Adapter) -> Any:
    """A copy of the model with an adapter's experts in place of its own: what is right."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for layer, experts in weights.items():
            module = layers_of(found)[layer]
            for e, parts in experts.items():
                gate, up, down = (parts[k] for k in ("gate_proj", "up_proj", "down_proj"))
                if module.is_transposed:  # gpt-oss: [H, 2I] in pairs, and [I, H]
                    module.gate_up_proj[e, :, 0::2] = gate.T
                    module.gate_up_proj[e, :, 1::2] = up.T
                    module.down_proj[e] = down.T
                else:
                    module.gate_up_proj[e] = torch.cat([gate, up])
                    module.down_proj[e] = down
    return found


def state_dict(
    weights: Adapter, prefix: str = "model.", names: Mapping[str, str] | None = None
) -> Any:
    """An adapter in ESFT's layout."""
    return {
        f"{prefix}layers.{layer}.mlp.experts.{e}.{(names or {}).get(key, key)}.weight": data
        for layer, experts in weights.items()
        for e, parts in experts.items()
        for key, data in parts.items()
    }


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found
