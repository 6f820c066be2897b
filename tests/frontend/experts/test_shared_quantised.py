"""Shared experts of few bits and in bf16: their linear layers are packed, reported and right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tilewright
from tests.frontend.experts.shared_models import (
    EXPERTS,
    logits,
    make,
    restored,
    shared_layers,
)
from tilewright.frontend.experts import huggingface
from tilewright.frontend.experts.find import experts_of, products_of
from tilewright.frontend.quantize.layers import QuantizedLinear

pytest.importorskip("transformers")
huggingface.register_experts()

WAYS = (  # one of each
    "Qwen2Moe",  # a sigmoid weighs the shared expert
    "DeepseekV3",  # several in one MLP
    "Llama4",  # experts of its own
    "GraniteMoeShared",  # beside the block
    "HunYuanMoEV1",  # a router that is a module with a layer
    "Cohere2Moe",
    "Ernie4_5_Moe",
    "NemotronH",  # no gate
    "Inkling",  # 3-D parameters
    "DeepseekV32",  # asks for the dtype of a layer's weight
    "MiniMaxM3VL",  # gate and up in one layer
    "Qwen3Next",  # linear attention
)
OWN = ("Llama4", "Inkling")  # 3-D parameters outside of transformers' interface


@pytest.mark.parametrize("family", WAYS)
def test_packed_models_give_what_their_values_give(family: str) -> None:
    model = make(family)
    shared, experts = shared_layers(model), list(experts_of(model))
    original = copy.deepcopy(model)
    report = tilewright.quantize(model, "u4", group=16, activation="float")
    packed = {row.name for row in report.quantized}
    left = {row.name: row.reason for row in report.left_alone}
    assert packed >= shared.keys() and bool(shared) == (family != "Inkling")
    assert packed >= {f"{n}.{p}" for n, module in experts for p in products_of(module)}
    assert all(isinstance(layer, QuantizedLinear) for layer in shared_layers(model).values())
    if family in OWN:
        assert any("3-D parameters are not those" in reason for reason in left.values())
    assert report.bytes_after < 0.45 * report.bytes_before
    wanted = logits(restored(model, original), "eager")
    torch.testing.assert_close(
        logits(model), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )


@pytest.mark.parametrize("family", WAYS)
def test_bfloat16_is_as_near_as_eager(family: str) -> None:
    model = make(family)
    exact = logits(model, "eager")
    model.bfloat16()
    theirs, ours = logits(model, "eager").float(), logits(model, "tilewright").float()
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


def test_gates_of_shared_experts_stay_unless_they_are_named() -> None:
    gate = "model.layers.1.mlp.shared_expert_gate"
    model = make("Qwen2Moe")
    left = {row.name: row.reason for row in tilewright.quantize(model, "u4", group=16).left_alone}
    assert "weighs them" in left[gate]
    report = tilewright.quantize(make("Qwen2Moe"), "u4", group=16, plan={gate: "u8"})
    assert {row.name: row.settings for row in report.quantized}[gate] == "u8 group 16"


@pytest.mark.parametrize(
    ("family", "routers"),
    [
        ("Qwen3Next", {"shared_expert_gate"}),
        ("HunYuanMoEV1", {"gate.wg"}),
        ("Afmoe", {"router.gate"}),
        ("DeepseekV3", set()),  # a parameter, no layer
    ],
)
def test_a_shared_expert_as_wide_as_there_are_experts_is_no_router(
    family: str, routers: set[str]
) -> None:
    """Qwen3-Next has 512 experts, and 512 columns in its shared one."""
    sizes = {"shared_expert_intermediate_size": EXPERTS, "moe_intermediate_size": EXPERTS}
    model = make(family, **sizes, intermediate_size=EXPERTS)
    shared = shared_layers(model)
    assert any(layer.out_features == EXPERTS for layer in shared.values())  # type: ignore[union-attr]
    report = tilewright.quantize(model, "u4", group=8)
    assert {row.name for row in report.quantized} >= shared.keys()
    chooses = [row.name for row in report.left_alone if "chooses experts" in row.reason]
    assert {name.partition("mlp.")[2] for name in chooses} == routers


def test_a_packed_weight_says_which_floats_it_stands_for() -> None:
    """DeepSeek-V3.2 converts to the dtype of the weight that comes next."""
    for dtype in (torch.float32, torch.bfloat16):
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 8), "b": torch.nn.Embedding(9, 32)})
        model.to(dtype)
        tilewright.quantize(model, "u4", group=16)
        layers: list[Any] = list(model.values())
        assert [layer.weight.dtype for layer in layers] == [dtype] * 2
        model.double()
        assert [copy.deepcopy(layer).weight.dtype for layer in layers] == [torch.double] * 2
        assert layers[0].weight.scales.dtype == torch.float16  # as they are stored, still


def test_a_router_that_may_choose_no_expert_is_left_alone() -> None:
    """LongCat-Flash's gives a number for each expert and for two more, which compute nothing."""
    sizes = {"zero_expert_num": 2, "expert_ffn_hidden_size": 24, "ffn_hidden_size": 48}
    model = make("LongcatFlash", num_layers=1, head_dim=8, **sizes)
    report = tilewright.quantize(model, "u4", group=8)
    router = model.model.layers[0].mlp.router.classifier
    assert type(router) is torch.nn.Linear and router.out_features == EXPERTS + 2
    assert "chooses experts" in str(report)
    assert logits(model).isfinite().all()
