"""ExpertBank: many adapters in one batch, each token as the merged model of its adapter has it."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frontend.expert_models import (
    EXPERTS,
    FAMILIES,
    adapter,
    layers_of,
    logits,
    make,
    merged,
    state_dict,
)
from tilewright.frontend.experts.bank import ExpertBank
from tilewright.frontend.experts.expert_layout import ExpertLayout
from tilewright.frontend.experts.huggingface import register_experts
from tilewright.frontend.experts.routing import reroute
from tilewright.ir.errors import ExpertError, UnsupportedError

pytest.importorskip("transformers")
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm", "tilewright"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_experts()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small only wait for more
    yield
    torch.set_num_threads(before)


def tokens(batch: int = 3, length: int = 6) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_sequence_is_its_merged_model(family: str) -> None:
    model, ids = make(family), tokens()
    weights = {name: adapter(model, seed) for seed, name in enumerate("abc", 1)}
    wanted = {name: logits(merged(model, parts), ids) for name, parts in weights.items()}
    base = logits(model, ids)
    bank = ExpertBank(model, slots=4, experts_per_slot=2)
    for name, parts in weights.items():
        bank.load(name, parts, share=1.0)
    bank.unload("b")
    assert not torch.allclose(wanted["a"], base, **CLOSE)  # the adapters do something
    for name in IMPLEMENTATIONS:
        model.set_experts_implementation(name)
        torch.testing.assert_close(logits(model, ids), base, **CLOSE)
        with bank.adapters(["c", None, "a"]):
            found = logits(model, ids)
        right = torch.stack([wanted["c"][0], base[1], wanted["a"][2]])
        torch.testing.assert_close(found, right, **CLOSE)
    bank.unload("a")
    bank.unload("c")
    torch.testing.assert_close(logits(model, ids), base, **CLOSE)


def test_ids_for_sequences_tokens_or_all() -> None:
    model, ids = make("Qwen3Moe"), tokens()
    weights = {name: adapter(model, seed) for seed, name in enumerate("ab", 1)}
    wanted = [logits(merged(model, parts), ids) for parts in weights.values()]
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    slots = [bank.load(name, parts) for name, parts in weights.items()]
    assert slots == [bank.slot("a"), bank.slot("b")] == [0, 1]
    base = logits(model, ids)
    with bank.adapters("b"):
        torch.testing.assert_close(logits(model, ids), wanted[1], **CLOSE)
        with bank.adapters(None):  # inside, the inner one counts
            torch.testing.assert_close(logits(model, ids), base, **CLOSE)
        torch.testing.assert_close(logits(model, ids), wanted[1], **CLOSE)
    with bank.adapters(torch.tensor([-1, 1, 0])):
        found = logits(model, ids)
    torch.testing.assert_close(found, torch.stack([base[0], wanted[1][1], wanted[0][2]]), **CLOSE)
    each = torch.full((3, 6), 0, dtype=torch.int32)
    each[:, 4:] = 1  # causal: what comes before the change is adapter a's
    with bank.adapters(each):
        torch.testing.assert_close(logits(model, ids)[:, :4], wanted[0][:, :4], **CLOSE)


def test_compiled_layers_do_not_remember_an_adapter() -> None:
    model = make("Qwen3Moe", num_hidden_layers=1)
    weights, x = adapter(model, 1, {0: 8}), torch.randn(3, 4, 32)
    block = model.model.layers[0].mlp
    with torch.no_grad():
        wanted, base = merged(model, weights).model.layers[0].mlp(x), block(x)
        bank = ExpertBank(model, slots=2, experts_per_slot=8)
        bank.load("a", weights)
        compiled = torch.compile(block, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(x), base, **CLOSE)
            with bank.adapters(["a", None, "a"]):
                found = compiled(x)
            right = torch.stack([wanted[0], base[1], wanted[2]])
            torch.testing.assert_close(found, right, **CLOSE)


def test_generation_with_an_adapter_for_each_prompt() -> None:
    model, ids = make("Qwen3Moe"), tokens(2, 4)
    weights = adapter(model, 1, {0: 8, 1: 8})
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    alone = [model.generate(ids, **options), merged(model, weights).generate(ids, **options)]
    assert not torch.equal(alone[0][1], alone[1][1])
    bank = ExpertBank(model, slots=1, experts_per_slot=8)
    bank.load("a", weights)
    with bank.adapters([None, "a"]):
        found = model.generate(ids, **options)
    assert torch.equal(found, torch.stack([alone[0][0], alone[1][1]]))


def test_adapters_are_for_one_thread() -> None:
    model, ids = make("Qwen3Moe"), tokens()
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    bank.load("a", adapter(model, 1))
    base, elsewhere = logits(model, ids), []
    with bank.adapters("a"):
        thread = threading.Thread(target=lambda: elsewhere.append(logits(model, ids)))
        thread.start()
        thread.join()
        assert not torch.allclose(logits(model, ids), base, **CLOSE)
    assert torch.equal(elsewhere[0], base)


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model."])
@pytest.mark.parametrize("container", ["dict", "file", "folder"])
def test_adapters_in_esft_layout(container: str, prefix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, ids = make("Mixtral"), tokens()
    weights = adapter(model, 3)
    wanted = logits(merged(model, weights), ids)
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if prefix else None
    flat = state_dict(weights, prefix, names)
    source: Any = flat
    if container == "file":
        source = tmp_path / "adapter.safetensors"
        save_file(flat, source)
    elif container == "folder":
        source = str(tmp_path)
        for part in (0, 1):
            some = {key: flat[key] for key in list(flat)[part::2]}
            save_file(some, tmp_path / f"adapter-{part}.safetensors")
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    bank.load("a", source)
    with bank.adapters("a"):
        torch.testing.assert_close(logits(model, ids), wanted, **CLOSE)


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.data())
def test_rerouting_is_the_formula(
    experts: int, adapters: int, count: int, choices: int, data: st.DataObject
) -> None:
    def drawn(*shape: int, least: int, most: int) -> torch.Tensor:
        total = torch.Size(shape).numel()
        numbers = st.lists(st.integers(least, most), min_size=total, max_size=total)
        return torch.tensor(data.draw(numbers), dtype=torch.int64).reshape(shape)

    pi = drawn(adapters, experts, least=0, most=500).int()
    ids = drawn(count, choices, least=0, most=experts - 1)
    aid = drawn(count, least=-1, most=adapters - 1).int()
    found = reroute(ids, aid, pi)
    assert found.dtype == ids.dtype
    assert found.tolist() == [
        [e if a < 0 else int(pi[a, e]) for e in row]
        for a, row in zip(aid.tolist(), ids.tolist(), strict=True)
    ]
    for wrong in (
        (ids + experts, aid, pi) if ids.numel() else (ids[None], aid, pi),
        (ids, aid + adapters + 1, pi),
        (ids, aid - adapters - 2, pi),
        (ids, aid[:-1], pi),
    ):
        with pytest.raises(ExpertError, match="ids"):
            reroute(*wrong)


def test_the_papers_example() -> None:
    """M = 64, N = 2, E_max = 8 (PAPERS.md §3.3)."""
    model = make("Qwen3Moe", num_experts=64, num_experts_per_tok=6, num_hidden_layers=1)
    bank = ExpertBank(model, slots=2, experts_per_slot=8)
    parts = adapter(model, 1, {0: 8})[0].values()
    for name, chosen in (("x", [3, 14, 47]), ("y", [5, 13, 14, 27, 35, 57, 59])):
        bank.load(name, {0: dict(zip(chosen, parts, strict=False))})
    ids = torch.tensor([[3, 14, 47, 0, 5, 63], [5, 13, 14, 27, 35, 57], [3, 14, 47, 59, 5, 63]])
    layer = layers_of(model)[0]._tilewright_bank
    with bank.adapters(["x", "y", None]):
        assert layer.ids(ids).tolist() == [
            [64, 65, 66, 0, 5, 63],
            [72, 73, 74, 75, 76, 77],
            ids[2].tolist(),
        ]
    assert layer.ids(ids) is ids
    assert layer.weights["down_proj"].shape[0] == 64 + 2 * 8


class Flags(torch.nn.Module):
    """Parameters and flags as transformers' decorator leaves them."""

    has_gate, has_post_expert_norm, _is_expert_parallel, config = True, False, False, None

    def __init__(self, transposed: bool, pairs: bool, bias: bool) -> None:
        super().__init__()
        self.is_transposed, self.is_concatenated, self.has_bias = transposed, not pairs, bias
        first, down = ((4, 6), (3, 4)) if transposed else ((6, 4), (4, 3))
        shapes = {"gate_up_proj": first, "down_proj": down}
        shapes |= {"gate_up_proj_bias": (6,), "down_proj_bias": (4,)} if bias else {}
        for key, shape in shapes.items():
            self.register_parameter(key, torch.nn.Parameter(torch.randn(2, *shape)))

    def _apply_gate(self, y: torch.Tensor) -> torch.Tensor:
        gate, up = y.chunk(2, -1) if self.is_concatenated else (y[..., ::2], y[..., 1::2])
        return torch.tanh(gate) * up


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_separate_matrices_become_each_layout(transposed: bool, pairs: bool, bias: bool) -> None:
    module = Flags(transposed, pairs, bias)
    layout = ExpertLayout.of("layer", module)
    given = {
        "gate_proj": torch.randn(3, 4),
        "up_proj": torch.randn(3, 4),
        "down_proj": torch.randn(4, 3),
    }
    if bias:
        given |= {"gate_proj_bias": torch.randn(3), "up_proj_bias": torch.randn(3)}
    found = {}
    for key, part in layout.stored("here", 1, given).items():
        rows: Any = part() if callable(part) else part
        found[key] = rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))
        assert found[key].shape == module.get_parameter(key).shape[1:]
    x = torch.randn(5, 4)
    first, down = found["gate_up_proj"], found["down_proj"]
    y = module._apply_gate(
        x @ (first if transposed else first.T) + found.get("gate_up_proj_bias", 0)
    )
    z = y @ (down if transposed else down.T) + found.get("down_proj_bias", 0)
    gate = torch.tanh(x @ given["gate_proj"].T + given.get("gate_proj_bias", 0))
    middle = gate * (x @ given["up_proj"].T + given.get("up_proj_bias", 0))
    right = middle @ given["down_proj"].T + (module.down_proj_bias[1] if bias else 0)
    torch.testing.assert_close(z, right)


def test_copies_and_files_are_of_the_plain_model(tmp_path: Path) -> None:
    model, ids = make("Qwen3Moe"), tokens()
    kind, base = type(layers_of(model)[0]), logits(model, ids)
    keys = list(model.state_dict())
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    bank.load("a", adapter(model, 1))
    assert list(model.state_dict()) == keys
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    model.save_pretrained(tmp_path)
    for other in (
        copy.deepcopy(model),
        torch.load(stream, weights_only=False),
        type(model).from_pretrained(tmp_path).eval(),
    ):
        assert type(layers_of(other)[0]) is kind
        torch.testing.assert_close(logits(other, ids), base, **CLOSE)
        ExpertBank(other, slots=1)  # and can have a bank of its own


def test_the_base_is_moved_not_copied() -> None:
    model = make("Qwen3Moe")
    parameter = layers_of(model)[0].down_proj
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    weight = bank.memory.layers[0]["down_proj"]
    assert layers_of(model)[0].down_proj is parameter
    assert parameter.data_ptr() == weight.tensor.data_ptr() == weight.base.data_ptr()
    assert bank.layers == (0, 1)


def test_report() -> None:
    model = make("Qwen3Moe")
    bank = ExpertBank(model, slots=3, experts_per_slot=4)
    bank.load("a", adapter(model, 1, {0: 1, 1: 4}))
    bank.load("b", adapter(model, 2, {1: 2}))
    figures = bank.report()
    assert figures.adapters["a"].experts == {0: 1, 1: 4}
    assert figures.adapters["a"].sparsity == pytest.approx(3 / 8)
    assert figures.adapters["b"].sparsity == pytest.approx(1 / 2)
    assert figures.f_mem == pytest.approx(2 * (EXPERTS + 2 * 4) / (2 * EXPERTS + 7))
    one = 3 * 24 * 32 * 4
    assert figures.existing_bytes == (2 * EXPERTS + 7) * one
    assert figures.padded_bytes == 2 * (EXPERTS + 3 * 4) * one
    assert figures.free_slots == 1
    assert "b: slot 1, 2 experts in 1 layers (at most 2 of 4), sparsity 0.50" in str(figures)


def test_models_and_implementations_without_a_way_are_named() -> None:
    import transformers

    with pytest.raises(ExpertError, match="no mixture-of-experts layers"):
        ExpertBank(torch.nn.Linear(2, 2))
    model = make("Qwen3Moe")
    bank = ExpertBank(model, slots=2, experts_per_slot=2)
    with pytest.raises(ExpertError, match="has a bank already"):
        ExpertBank(model)
    bank.load("a", adapter(model, 1))
    model.config._experts_implementation = "deepgemm"
    with (
        bank.adapters("a"),
        pytest.raises(UnsupportedError, match="'deepgemm' cannot run adapters"),
    ):
        logits(model, tokens())
    model.set_experts_implementation("tilewright")
    model.double()
    with pytest.raises(ExpertError, match="was moved or converted"):
        logits(model, tokens())
    dense = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    with pytest.raises(ExpertError, match="no mixture-of-experts layers"):
        ExpertBank(transformers.LlamaForCausalLM(dense))
