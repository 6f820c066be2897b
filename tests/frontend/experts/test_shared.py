"""Shared experts beside routed ones: models of every family match eager."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright
from tests.frontend.expert_models import state_dict
from tests.frontend.experts.shared_models import FAMILIES, OUTSIDE, logits, make, shared_layers
from tilewright.frontend.experts import huggingface
from tilewright.frontend.experts.find import experts_of
from tilewright.ir.errors import ExpertError

pytest.importorskip("transformers")
huggingface.register_experts()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_match_eager(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(family)
    assert shared_layers(model) or family == "Inkling"  # whose shared experts are 3-D parameters
    wanted = logits(model, "eager")
    calls: list[Any] = []
    ours = huggingface.experts_forward

    def counted(*given: Any) -> torch.Tensor:
        calls.append(given)
        return ours(*given)

    monkeypatch.setattr(huggingface, "experts_forward", counted)
    found = logits(model, "tilewright")
    assert bool(calls) == (family not in OUTSIDE)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def adapter(model: Any) -> dict[int, dict[int, dict[str, torch.Tensor]]]:
    """Two experts of the last layer."""
    module: Any = list(experts_of(model))[-1][1]
    up, down = module.gate_up_proj.shape[1] // 2, module.down_proj.shape
    sizes = {"gate_proj": (up, down[1]), "up_proj": (up, down[1]), "down_proj": (down[1], up)}
    return {1: {e: {k: torch.randn(s) * 0.2 for k, s in sizes.items()} for e in (2, 5)}}


@pytest.mark.parametrize("family", ["Qwen2Moe", "DeepseekV3"])
def test_adapters_beside_shared_experts(family: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = make(family)
    weights, base = adapter(model), logits(model, "tilewright")
    merged = copy.deepcopy(model)
    module: Any = merged.model.layers[1].mlp.experts
    with torch.no_grad():
        for e, parts in weights[1].items():
            module.gate_up_proj[e] = torch.cat([parts["gate_proj"], parts["up_proj"]])
            module.down_proj[e] = parts["down_proj"]
    wanted = torch.stack([base[0], logits(merged)[1]])
    assert not torch.allclose(wanted, base)
    bank = tilewright.ExpertBank(model, slots=1, experts_per_slot=2)
    flat = state_dict(weights)
    name = next(n for n in shared_layers(model) if n.startswith("model.layers.1."))
    with pytest.raises(ExpertError, match="nothing but experts may differ"):
        bank.load("law", {**flat, f"{name}.weight": torch.zeros(2, 2)})
    save_file(flat, tmp_path / "law.safetensors")
    bank.load("law", tmp_path)
    with bank.adapters([None, "law"]):
        assert torch.equal(logits(model), wanted)
