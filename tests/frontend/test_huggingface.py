"""Models of transformers: eager and sdpa attention are caught, generate works, the hook works."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.frontend.test_attention_spellings import PARTS
from tilewright.frontend import programs
from tilewright.frontend.attention import plans
from tilewright.frontend.attention.function_mask import FunctionMask
from tilewright.frontend.compile import CompiledModule, compile
from tilewright.frontend.huggingface import FALLBACKS, register_attention
from tilewright.ir.errors import UnsupportedError

transformers = pytest.importorskip("transformers")
from transformers.masking_utils import bidirectional_mask_function  # noqa: E402

from tilewright.frontend.huggingface_mask import function_mask  # noqa: E402  (needs transformers)

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
    graphs = compiled.explain().graphs
    assert len(graphs) == 3  # prefill, first decode step, the others
    for graph in graphs[1:]:  # q is rotated in the kernel; k, which the cache needs, is not
        rotated = [r.ir.count("tensor.concat") for r in graph.regions if "tensor.softmax" in r.ir]
        assert rotated == [1] * LAYERS


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


def config_of(kind: str, **more: Any) -> Any:
    """A small configuration of a model class, with what makes its attention special."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
    sizes |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    sizes["initializer_range"] = 0.3  # large enough for scores that a soft cap changes
    grouped = {**sizes, "num_key_value_heads": 2}
    heads = {**grouped, "head_dim": 8}
    mixed = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
    gpt2 = {"vocab_size": 64, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
    t5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS}
    rows = {
        "Llama": grouped,
        "Mistral": {**grouped, "sliding_window": 4},
        "Gemma2": {**heads, **mixed, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
        "Gemma3Text": {**heads, **mixed, "query_pre_attn_scalar": 8},
        "GPT2": {**gpt2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0},
        "Bert": sizes,
        "Qwen3Moe": {**heads, **experts, "num_experts": 4},
        "GptOss": {**heads, **mixed, "num_local_experts": 4, "num_experts_per_tok": 2},
        "T5": {**t5, "num_heads": 4, "eos_token_id": None, "decoder_start_token_id": 0},
    }
    return getattr(transformers, f"{kind}Config")(**{**rows[kind], **more})


CLASSES = {
    "Llama": "LlamaForCausalLM",
    "Mistral": "MistralForCausalLM",
    "Gemma2": "Gemma2ForCausalLM",
    "Gemma3Text": "Gemma3ForCausalLM",
    "GPT2": "GPT2LMHeadModel",
    "Bert": "BertForMaskedLM",
    "Qwen3Moe": "Qwen3MoeForCausalLM",
    "GptOss": "GptOssForCausalLM",
    "T5": "T5ForConditionalGeneration",
}
IDS = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(1))
SEEN = torch.ones(2, 9, dtype=torch.long)
SEEN[0, :3] = 0


def both_models(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same random model with our attention and with transformers' own."""
    register_attention()
    FALLBACKS.clear()
    models = []
    for attention in ("tilewright", "eager"):
        config = config_of(kind)
        config._attn_implementation = attention
        torch.manual_seed(0)
        models.append(getattr(transformers, CLASSES[kind])(config).to(dtype).eval())
    return models[0], models[1]


@pytest.mark.parametrize("kind", CLASSES)
def test_models_match_eager_without_masks_in_memory(kind: str, monkeypatch: Any) -> None:
    for read in ("to_dense", "allowed"):
        monkeypatch.setattr(FunctionMask, read, lambda _: pytest.fail("dense"), raising=False)
    ours, theirs = both_models(kind)
    more = {"decoder_input_ids": IDS} if kind == "T5" else {}
    with torch.no_grad():
        for options in ({}, {"attention_mask": SEEN}):
            given, wanted = (m(IDS, **options, **more).logits for m in (ours, theirs))
            padded = 3 if options and kind != "T5" else 0  # eager's padding rows are arbitrary
            torch.testing.assert_close(given[0, padded:], wanted[0, padded:], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(given[1], wanted[1], rtol=1e-5, atol=1e-5)
    assert not FALLBACKS


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "Bert"])
def test_generation_in_batches_with_padding(kind: str, cache: str) -> None:
    ours, theirs = both_models(kind)
    plans.TRACES.clear()
    new = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": SEEN}
    if cache == "static":
        new["cache_implementation"] = "static"
    assert torch.equal(ours.generate(IDS, **new), theirs.generate(IDS, **new))
    assert not FALLBACKS
    first = plans.TRACES.total()
    new["max_new_tokens"] = 11
    ours.generate(IDS[:, 1:], **{**new, "attention_mask": SEEN[:, 1:]})
    assert plans.TRACES.total() == first  # neither a step nor a length is a new function


def test_where_no_mask_is_needed() -> None:
    """One query after all keys; as many queries as keys are causal; not in a longer cache."""
    assert function_mask(1, 1, 4, q_offset=3) is None
    for causal in (
        function_mask(1, 4, 4),
        function_mask(1, 4, 4, 2, 2, attention_mask=torch.ones(1, 6).bool()),
    ):
        assert isinstance(causal, FunctionMask) and causal.causal
    traced = function_mask(1, 4, 4, allow_is_causal_skip=False)
    assert isinstance(traced, FunctionMask) and not traced.causal
    assert function_mask(1, 1, 8, q_offset=torch.tensor(3)) is not None
    assert function_mask(1, 4, 4, q_offset=1) is not None
    assert function_mask(1, 4, 8, q_offset=4) is not None
    assert function_mask(1, 4, 4, local_size=2) is not None
    assert function_mask(1, 4, 4, attention_mask=torch.ones(1, 3).bool()) is not None
    everything = {"mask_function": bidirectional_mask_function, "allow_is_causal_skip": False}
    assert function_mask(1, 4, 6, allow_is_bidirectional_skip=True, **everything) is None
    assert function_mask(1, 4, 6, **everything) is not None


def test_packed_sequences() -> None:
    ours, theirs = both_models("Llama")
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    with torch.no_grad():
        given, wanted = (
            m(IDS[:1], position_ids=places, use_cache=False).logits for m in (ours, theirs)
        )
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert not FALLBACKS


def test_masks_given_as_tensors() -> None:
    ours, theirs = both_models("Llama")
    seen = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.3
    seen |= torch.eye(9, dtype=torch.bool)
    added = torch.zeros(2, 1, 9, 9).masked_fill(~seen, -1e9)
    with torch.no_grad():
        for mask in (seen, added):
            given = ours(IDS, attention_mask=mask).logits
            wanted = theirs(IDS, attention_mask=added).logits
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert not FALLBACKS


def test_without_a_kernel_torch_gives_the_result_and_the_reason_is_counted(
    monkeypatch: Any,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedError("not today")

    monkeypatch.setattr(programs, "make_program", refuse)
    for kind in ("Mistral", "Gemma2", "GptOss"):
        ours, theirs = both_models(kind)
        with torch.no_grad():
            given = ours(IDS, attention_mask=SEEN).logits
            wanted = theirs(IDS, attention_mask=SEEN).logits
        torch.testing.assert_close(given[1], wanted[1], rtol=1e-5, atol=1e-5)
        assert FALLBACKS == {"no kernel could be made: not today": LAYERS}


def test_training_stays_with_torch_and_has_gradients() -> None:
    for kind in ("Llama", "Gemma2", "GptOss"):
        ours, theirs = both_models(kind)
        for model in (ours, theirs):
            model(IDS, attention_mask=SEEN).logits[1].sum().backward()
        assert sum("gradients" in reason for reason in FALLBACKS) == 1
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        for a, b in pairs:
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_sixteen_bits() -> None:
    ours, theirs = both_models("Gemma2", torch.bfloat16)
    with torch.no_grad():
        given, wanted = (m(IDS, attention_mask=SEEN).logits for m in (ours, theirs))
    torch.testing.assert_close(given[1], wanted[1], rtol=0.05, atol=0.05)
    assert not FALLBACKS


def test_a_function_mask_is_a_tensor_to_those_who_read_it() -> None:
    mask = function_mask(2, 3, 5, 2, 0, attention_mask=torch.ones(2, 5).bool().tril(3))
    assert isinstance(mask, FunctionMask)
    dense = mask.to_dense()
    assert dense.shape == (2, 1, 3, 5) and mask.shape == dense.shape and mask.ndim == 4
    assert torch.equal(mask[:, :, :, :2], dense[..., :2])
    assert torch.cat([mask, dense]).shape == (4, 1, 3, 5)
    assert mask.to("cpu") is mask and "shifted" in repr(mask)
    assert torch.equal(mask == 0, mask.allowed()) and torch.equal(dense * 0 + mask, dense)


def test_metadata_of_a_mask_does_not_make_its_tensor() -> None:
    mask = FunctionMask(lambda b, h, q, kv: q >= kv, (2, 3, 5), lambda: pytest.fail("read"))
    assert mask.shape == (2, 1, 3, 5) and mask.dtype == torch.float32 and mask.dim() == 4
    assert isinstance(mask, torch.Tensor) and mask.device.type == "cpu" and mask.numel() == 30
    assert "lambda" in repr(mask) and mask.lengths == (3, 5)


def test_asking_for_attentions_says_that_there_are_none() -> None:
    ours, _ = both_models("Llama")
    with torch.no_grad(), pytest.warns(UserWarning, match='set_attn_implementation\\("eager"\\)'):
        assert not ours(IDS, output_attentions=True).attentions
