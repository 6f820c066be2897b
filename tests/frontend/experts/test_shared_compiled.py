"""Blocks with shared experts, compiled: the shared MLP and its gate are our kernels, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tilewright
from tests.frontend.experts.shared_models import block_of, make
from tilewright.bench.kernel_list import operations_left
from tilewright.frontend.experts import huggingface

pytest.importorskip("transformers")
huggingface.register_experts()
MLP = {"linear", "silu", "sigmoid"}  # what torch would run of a shared expert and its gate


def run(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Llama 4's block returns its router's logits, too."""
    with torch.no_grad():
        found = block(x)
    result: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return result


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("family", ["Qwen2Moe", "DeepseekV3", "Cohere2Moe", "Llama4"])
def test_shared_experts_are_kernels(family: str) -> None:
    torch.compiler.reset()
    model, x = make(family), inputs()
    model.set_experts_implementation("eager")
    wanted = run(block_of(model), x)
    model.set_experts_implementation("tilewright")
    compiled = tilewright.compile(block_of(model))
    torch.testing.assert_close(run(compiled, x), wanted, rtol=1e-4, atol=1e-5)
    left = operations_left(compiled.explain().to_dict())
    routed = {"silu"} if family == "Llama4" else set()  # torch's own experts
    assert MLP & left.keys() == routed


@pytest.mark.parametrize("family", ["Qwen2Moe", "DeepseekV3", "Llama4"])
def test_packed_shared_experts_are_two_calls(family: str) -> None:
    torch.compiler.reset()
    model, x = make(family), inputs()
    tilewright.quantize(model, "u4", group=16)
    block = block_of(model)
    wanted = run(block, x)
    compiled = tilewright.compile(block)
    torch.testing.assert_close(run(compiled, x), wanted, rtol=1e-4, atol=1e-5)
    left = operations_left(compiled.explain().to_dict())
    assert (left["quantized_gated_linear"], left["quantized_linear"]) == (1, 1)


@pytest.mark.parametrize("family", ["Qwen2Moe", "DeepseekV3", "Llama4"])
def test_bfloat16(family: str) -> None:
    torch.compiler.reset()
    model, x = make(family).bfloat16(), inputs(torch.bfloat16)
    model.set_experts_implementation("eager")
    wanted = run(block_of(model), x)
    model.set_experts_implementation("tilewright")
    found = run(tilewright.compile(block_of(model)), x)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).float().norm() <= 2**-7 * wanted.float().norm()
