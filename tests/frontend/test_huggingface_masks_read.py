"""Models that read their mask, choose keys, or have an attention of their own, match eager."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.frontend.huggingface import FALLBACKS, register_attention

transformers = pytest.importorskip("transformers")
from tests.frontend.experts.shared_models import make  # noqa: E402  (needs transformers)

IDS = torch.arange(39).reshape(3, 13) * 5 % 60 + 2
SEEN = torch.ones(3, 13, dtype=torch.long)
SEEN[0, :5] = SEEN[2, :1] = 0
RIGHT = SEEN.flip(1)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def by_both(model: Any, result: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A result with our attention and with the model's own, without gradients."""
    register_attention()
    found = []
    for attention in ("tilewright", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            found.append(result())
    return found[0], found[1]


def in_both(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by both, of the positions that are no padding."""
    FALLBACKS.clear()
    seen = options.get("attention_mask", torch.ones_like(IDS)).bool()
    return by_both(model, lambda: model(IDS, use_cache=False, **options).logits[seen])


def bigbird(**_: Any) -> Any:
    """A decoder whose attention does not say of itself that it is causal."""
    config = transformers.BigBirdPegasusConfig(
        vocab_size=64,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.3,
    )
    torch.manual_seed(0)
    return transformers.BigBirdPegasusForCausalLM(config).eval()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["Doge", "BigBirdPegasus"])
def test_causality_and_padding_of_masks_that_a_model_reads(kind: str, padded: bool) -> None:
    """Doge adds the mask to its own; BigBirdPegasus has a flag that says the opposite."""
    model = bigbird() if kind == "BigBirdPegasus" else make(kind)
    ours, theirs = in_both(model, **({"attention_mask": SEEN} if padded else {}))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert not FALLBACKS


@pytest.mark.parametrize("length", [1, 7])
def test_an_encoder_that_does_not_say_that_it_is_not_causal(length: int) -> None:
    """Splinter's attention has no ``is_causal``, and without padding no mask."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    config = transformers.SplinterConfig(num_attention_heads=4, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    model = transformers.SplinterModel(config).eval()
    ours, theirs = by_both(model, lambda: model(IDS[:, :length]).last_hidden_state)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_a_mask_that_an_encoder_of_its_own_adds_to_scores() -> None:
    """BigBirdPegasus' encoder has no interface, and its decoder has: one mask serves both."""
    config = transformers.BigBirdPegasusConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        attention_type="original_full",
        init_std=0.3,
    )
    torch.manual_seed(0)
    model = transformers.BigBirdPegasusForConditionalGeneration(config).eval()
    given = {"attention_mask": RIGHT, "decoder_input_ids": IDS}
    ours, theirs = by_both(model, lambda: model(IDS, **given).logits)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("kind", ["BigBirdPegasus", "DeepseekV32", "Inkling2"])
def test_the_hook_in_a_compiled_model(kind: str) -> None:
    """There masks are tensors from the start, and what they say is the same."""
    torch._dynamo.reset()
    model = bigbird() if kind == "BigBirdPegasus" else make(kind, index_topk=4)
    register_attention()
    model.set_attn_implementation("tilewright")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = torch.compile(model, backend="eager")(IDS, use_cache=False).logits
        model.set_attn_implementation("eager")
        theirs = model(IDS, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_the_hook_under_autocast() -> None:
    """Masks are f32 there, queries bf16."""
    model = bigbird()
    register_attention()
    found = []
    for attention in ("tilewright", "eager"):
        model.set_attn_implementation(attention)
        for grad in (False, True):
            with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
                logits = model(IDS, attention_mask=SEEN, use_cache=False).logits
            found.append(logits[SEEN.bool()].float())
    for ours in found[:2]:
        torch.testing.assert_close(ours, found[2], rtol=0.1, atol=0.15)


CHOOSING = {
    "DeepseekV32": {"index_topk": 4},
    "HYV4": {"index_topk": 4},
    "MiniMaxM3VL": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_block_size": 3,
        "index_topk_blocks": 2,
        "index_local_blocks": 1,
    },
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", CHOOSING)
def test_keys_that_a_model_chose_for_each_query(kind: str, padded: bool) -> None:
    """Models hide the others themselves from "eager" and "sdpa" only. (Padding on the right: what
    MiniMaxM3VL chooses depends on padding before it, whose rows differ from eager to sdpa.)"""
    model = make(kind, **CHOOSING[kind])
    ours, theirs = in_both(model, **({"attention_mask": RIGHT} if padded else {}))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert not FALLBACKS


def test_chosen_keys_in_generation_and_without_a_kernel() -> None:
    model = make("DeepseekV32", index_topk=4)
    new = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": SEEN}
    register_attention()
    model.set_attn_implementation("eager")
    expected = model.generate(IDS, **new)
    model.set_attn_implementation("tilewright")
    assert torch.equal(model.generate(IDS, **new), expected)
    grads = []
    for attention in ("tilewright", "eager"):  # gradients: in torch
        model.set_attn_implementation(attention)
        model.zero_grad()
        model(IDS, use_cache=False).logits.pow(2).mean().backward()
        grads.append(model.model.layers[0].self_attn.o_proj.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_what_only_the_models_own_attention_knows_stays_with_it(padded: bool) -> None:
    """Inkling2 has a sink for each query, from its token."""
    model = make("Inkling2")
    ours, theirs = in_both(model, **({"attention_mask": SEEN} if padded else {}))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert FALLBACKS and all("sinks of Inkling2" in reason for reason in FALLBACKS)
