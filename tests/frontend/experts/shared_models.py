"""Small random models of every text family of transformers with shared and routed experts."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from tests.frontend.huggingface_experts import dequantised
from tilewright.frontend.quantize.layers import QuantizedEmbedding, QuantizedLinear

# of transformers 5.23: what has "shared_expert" or "shared_mlp" in its modelling file, and a text
# model
FAMILIES = (
    "Afmoe",
    "AriaText",
    "AXK1",
    "AXK2",
    "BailingHybrid",
    "Cohere2Moe",
    "DeepseekV2",
    "DeepseekV3",
    "DeepseekV32",
    "DeepseekV4",
    "Dots1",
    "Dots3Note",
    "Ernie4_5_Moe",
    "ExaoneMoe",
    "Flint",
    "Glm4Moe",
    "Glm4MoeLite",
    "GlmMoeDsa",
    "GraniteMoeHybrid",
    "GraniteMoeShared",
    "GraniteMoeSWA",
    "HunYuanMoEV1",
    "HYV3",
    "HYV4",
    "Inkling",
    "KimiLinear",
    "Kolibri1",
    "Laguna",
    "Llama4",
    "MiniMaxM3VL",
    "Mistral4",
    "NemotronH",
    "Qwen2Moe",
    "Qwen3_5Moe",
    "Qwen3Next",
    "Qwen4Exp",
    "SolarOpen",
)
OUTSIDE = ("Llama4",)  # whose experts are not transformers' interface: torch runs them
EXPERTS = 8
# each configuration takes what it knows: they have many names for the same sizes
_SETTINGS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "intermediate_size": 48,
    "intermediate_size_mlp": 40,
    "moe_intermediate_size": 24,
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 3),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(
        (
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        40,
    ),
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [],
    "moe_layer_start_index": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
}
IDS = torch.arange(14).reshape(2, 7) * 5 % 62 + 1


def make(family: str, **changes: Any) -> Any:
    """A model whose weights are large enough for the choice of experts to matter."""
    import transformers

    kind = next(
        found
        for name in (f"{family}ForCausalLM", f"{family}TextForCausalLM")
        if (found := getattr(transformers, name, None)) is not None
    )
    config = kind.config_class
    known = set(inspect.signature(config.__init__).parameters) | set(config.attribute_map)
    known |= set(getattr(config, "__dataclass_fields__", ()))
    settings = {**_SETTINGS, **changes}
    if "kv_lora_rank" in known:  # keys for every head
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    torch.manual_seed(0)
    made = config(**{name: value for name, value in settings.items() if name in known})
    model = kind._from_config(made).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return model


def logits(model: Any, implementation: str | None = None) -> torch.Tensor:
    """[2, 7, 64], of the chosen implementation of routed experts."""
    if implementation is not None:
        model.set_experts_implementation(implementation)
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


def shared_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of shared experts, by name, without the gates that weigh them."""
    return {
        name: module
        for name, module in model.named_modules()
        if "shared" in name
        and isinstance(module, (nn.Linear, QuantizedLinear))
        and module.out_features > 1
    }


def restored(quantised: Any, original: Any) -> Any:
    """A copy of ``original`` with the values that ``quantised`` has packed."""
    copied = dequantised(quantised, original)
    for name, module in quantised.named_modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            weight = copied.get_submodule(name).weight
            weight.data = module.qweight.dequantize().to(weight.dtype)
    return copied


def block_of(model: Any) -> Any:
    """A copy of the last layer's block of a router, experts and a shared expert."""
    layer = model.model.layers[-1]
    return copy.deepcopy(layer.feed_forward if hasattr(layer, "feed_forward") else layer.mlp)
