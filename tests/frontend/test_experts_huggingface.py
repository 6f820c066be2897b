"""``experts_implementation="tilewright"``: models match eager, also compiled and in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tilewright
from tests.frontend.huggingface_experts import IDS, NAMES, causal, logits, routed, run
from tilewright.runtime.experts import ExpertsForm, Gate

pytest.importorskip("transformers")

from tilewright.frontend.experts import huggingface

huggingface.register_experts()


@pytest.mark.parametrize("name", NAMES)
def test_models_match_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal(name)
    new = {"max_new_tokens": 4, "do_sample": False}
    model.set_experts_implementation("eager")
    wanted, tokens = logits(model), model.generate(IDS, **new)
    calls: list[ExpertsForm] = []
    ours = huggingface.experts_forward

    def counted(form: ExpertsForm, *others: Any) -> torch.Tensor:
        calls.append(form)
        return ours(form, *others)

    monkeypatch.setattr(huggingface, "experts_forward", counted)
    model.set_experts_implementation("tilewright")
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=2e-5)
    layers = len(calls)
    assert layers == (1 if name == "DeepseekV3" else 2)
    assert torch.equal(model.generate(IDS, **new), tokens)
    assert len(set(map(id, calls))) == layers  # forms are kept from call to call
    alpha = {"alpha": 1.702, "limit": 7.0, "shift": 1.0} if name == "GptOss" else {}
    assert all(form.gate == Gate("silu", **alpha) for form in calls)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_eager(name: str) -> None:
    model = causal(name)
    found = []
    for implementation in ("eager", "tilewright"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        model(IDS).logits.square().mean().backward()
        named = model.named_parameters()
        found.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad, rtol=1e-4, atol=1e-5 * float(grad.max()))


@pytest.mark.parametrize("name", ["Qwen3Moe", "GptOss"])
def test_bfloat16_is_as_near_to_float64_as_eager(name: str) -> None:
    torch.manual_seed(0)
    model = causal(name)
    module = next(m for m in model.modules() if hasattr(m, "is_transposed"))
    module = module.to(torch.bfloat16)
    x, (ids, weights) = torch.randn(60, 40).bfloat16(), routed(60, module.num_experts, 3)
    with torch.no_grad():
        ours = run(module, "tilewright", x, ids, weights.bfloat16())
        eager = run(module, "eager", x, ids, weights.bfloat16())
        exact = run(module.double(), "eager", x.double(), ids, weights.bfloat16().double())
    off, theirs = (ours - exact).norm(), (eager - exact).norm()
    assert ours.dtype == torch.bfloat16 and off <= 1.1 * theirs
    assert (ours - exact).abs().max() <= 2 * (eager - exact).abs().max()


@pytest.mark.parametrize(("name", "gradients"), [("Mixtral", False), ("GptOss", True)])
def test_whole_graphs_of_torch_compile(name: str, gradients: bool) -> None:
    model = causal(name)
    model.set_experts_implementation("tilewright")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        result = compiled(IDS).logits
    torch.testing.assert_close(result, logits(model), rtol=1e-5, atol=1e-5)
    if gradients:
        result.square().mean().backward()
        wanted = copy.deepcopy(model)
        wanted.zero_grad()
        wanted(IDS).logits.square().mean().backward()
        for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_model_compiles_with_its_attention() -> None:
    model = causal("Qwen3Moe")
    model.set_experts_implementation("tilewright")
    compiled = tilewright.compile(model, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, logits(model), rtol=1e-4, atol=1e-4)
