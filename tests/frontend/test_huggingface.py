"""Models of transformers: eager and sdpa attention are caught, generate works, the hook works."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.frontend.test_attention_spellings import PARTS
from tilewright.frontend.compile import CompiledModule, compile

transformers = pytest.importorskip("transformers")
LAYERS = 2


def llama(attention: str, dtype: torch.dtype = torch.float32) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation=attention,
        bos_token_id=1,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def assert_attention_caught(compiled: CompiledModule) -> None:
    """One region per layer; of the attention's operations nothing is left with torch."""
    for graph in compiled.explain().graphs:
        attentions = [r for r in graph.regions if "tensor.softmax" in r.ir]
        assert [r.status for r in attentions] == ["kernel"] * LAYERS
        left = {row.op for row in graph.left} - {"expand", "where"}  # of masks
        assert not left & (set(PARTS) - {"sum"}), str(compiled.explain())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama(attention: str) -> None:
    model = llama(attention)
    compiled = compile(model, strict=True)
    ids = torch.randint(0, 64, (1, 9))
    with torch.no_grad():
        ours, theirs = compiled(input_ids=ids).logits, model(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(compiled.generate(ids, **new), model.generate(ids, **new))
    assert_attention_caught(compiled)
    assert len(compiled.explain().graphs) == 3  # prefill, first decode step, the others


def test_llama_with_a_padding_mask_in_bfloat16() -> None:
    model = llama("eager", torch.bfloat16)
    compiled = compile(model)
    ids, seen = torch.randint(0, 64, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    seen[0, :3] = 0
    with torch.no_grad():
        ours = compiled(input_ids=ids, attention_mask=seen).logits
        theirs = model(input_ids=ids, attention_mask=seen).logits
    torch.testing.assert_close(ours[:, 3:], theirs[:, 3:], rtol=0.05, atol=0.05)
    assert_attention_caught(compiled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_attention_hook(dtype: torch.dtype) -> None:
    from tilewright.frontend.huggingface import FALLBACKS, register_attention

    register_attention()
    FALLBACKS.clear()
    model, plain = llama("tilewright", dtype), llama("sdpa", dtype)
    ids, seen = torch.randint(0, 64, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    seen[0, :3] = 0
    bound = 1e-5 if dtype == torch.float32 else 0.05
    with torch.no_grad():
        for options in ({}, {"attention_mask": seen}):
            ours, theirs = model(ids, **options).logits, plain(ids, **options).logits
            torch.testing.assert_close(ours[:, 3:], theirs[:, 3:], rtol=bound, atol=bound)
        new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        if dtype == torch.float32:
            assert torch.equal(model.generate(ids, **new), plain.generate(ids, **new))
    assert not FALLBACKS
    model(ids).logits.sum().backward()
    assert any("gradients" in reason for reason in FALLBACKS)
