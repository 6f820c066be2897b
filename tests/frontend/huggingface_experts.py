"""Small random mixture-of-experts models of transformers, and single modules of experts."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tilewright.frontend.experts.find import columns_of, experts_of, products_of
from tilewright.frontend.experts.weights import holder_of
from tilewright.runtime.experts import HALVES

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_OWN: dict[str, dict[str, Any]] = {
    "Mixtral": {"intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2},
    "Qwen3Moe": {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3},
    "Olmoe": {"intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3},
    "GptOss": {
        "intermediate_size": 24,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "head_dim": 10,
    },
    "DeepseekV3": {
        "intermediate_size": 40,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}
NAMES = tuple(_OWN)
IDS = torch.arange(14).reshape(2, 7) * 5 % 64


def causal(name: str) -> Any:
    """A model with weights large enough for the choice of experts to matter."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**_COMMON, **_OWN[name]})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            if "norm" not in name_:
                parameter.normal_(std=0.3)
    return model


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


def experts_module(
    act: nn.Module | None = None,
    sizes: tuple[int, int, int] = (4, 12, 20),
    gate: Any = None,
    after: nn.Module | None = None,
    **flags: bool,
) -> Any:
    """Experts [E, 2I, H] for sizes E, I, H as ``use_experts_implementation(**flags)`` makes them.
    ``gate`` is a method ``_apply_gate`` of the module's own."""
    from transformers.integrations.moe import use_experts_implementation

    experts, inner, hidden = sizes
    wide = 2 * inner if flags.get("has_gate", True) else inner
    first = "gate_up_proj" if flags.get("has_gate", True) else "up_proj"

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = experts
            self.act_fn = act or nn.SiLU()
            for name, rows, columns in ((first, wide, hidden), ("down_proj", hidden, inner)):
                turned = (columns, rows) if flags.get("is_transposed") else (rows, columns)
                setattr(self, name, nn.Parameter(torch.randn(experts, *turned) * 0.5))
                if flags.get("has_bias"):
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(experts, rows)))
            if after is not None:
                self.post_expert_norm = after

        def forward(self, *_: Any) -> torch.Tensor:
            raise AssertionError("eager is not there")

    if gate is not None:
        Experts._apply_gate = gate  # type: ignore[attr-defined]
    made: Any = use_experts_implementation(has_post_expert_norm=after is not None, **flags)
    return made(Experts)(SimpleNamespace(_experts_implementation="batched_mm"))


def routed(tokens: int, experts: int, chosen: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """ids, some of them twice in a row, and weights [tokens, chosen]."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, experts, (tokens, chosen), generator=made)
    return ids, torch.rand(tokens, chosen, generator=made)


def run(module: Any, implementation: str, *arguments: torch.Tensor) -> torch.Tensor:
    module.config._experts_implementation = implementation
    result: torch.Tensor = module(*arguments)
    return result


def dequantised(quantised: Any, original: Any) -> Any:
    """A copy of ``original`` whose experts have the values of ``quantised``."""
    copied = copy.deepcopy(original)
    modules = dict(copied.named_modules())
    for name, module in experts_of(quantised):
        for parameter in products_of(module):
            holder = holder_of(module, parameter)
            if holder is None:
                continue
            values = [each.tensor.dequantize() for each in holder.holders]
            value = values[0] if hasattr(holder, "words") else torch.stack(values)
            if value.dim() == 4:
                together = value if columns_of(module) == HALVES else value.transpose(1, 2)
                value = together.flatten(1, 2)
            value = value.mT if module.is_transposed else value
            with torch.no_grad():
                getattr(modules[name], parameter).copy_(value)
    return copied
