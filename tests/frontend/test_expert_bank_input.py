"""What does not fit is named, before anything is touched, and the bank stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frontend.expert_models import (
    EXPERTS,
    HIDDEN,
    INTER,
    Adapter,
    adapter,
    layers_of,
    logits,
    make,
    state_dict,
)
from tilewright.frontend.experts.bank import ExpertBank
from tilewright.ir.errors import DataError, ExpertError, TilewrightError, UnsupportedError
from tilewright.runtime.expert_memory import memory
from tilewright.runtime.expert_memory.snapshot import expert_map

pytest.importorskip("transformers")
TOKENS = torch.arange(12).reshape(2, 6)


class Loaded:
    """A model of two layers with two of three slots taken."""

    def __init__(self, family: str = "Qwen3Moe") -> None:
        self.model = make(family)
        self.bank = ExpertBank(self.model, slots=3, experts_per_slot=3)
        self.bank.load("a", adapter(self.model, 1), share=1.0)
        self.bank.load("b", adapter(self.model, 2), share=1.0)
        self.new = adapter(self.model, 3)

    def load(self, weights: Any) -> None:
        self.bank.load("new", weights, share=1.0)

    def state(self) -> tuple[Any, list[bytes]]:
        """What is loaded, and every byte that exists."""
        rows = []
        for layer, weights in self.bank.memory.layers.items():
            used = sorted({*range(EXPERTS), *self.bank.maps(layer).flatten().tolist()})
            for weight in weights.values():
                rows.extend(weight.tensor[row].numpy().tobytes() for row in used)
        return (self.bank.memory.snapshot, self.bank.report()), rows


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded()


def first(weights: Adapter) -> dict[str, torch.Tensor]:
    return next(iter(weights[0].values()))


def changed(weights: Adapter, **matrices: torch.Tensor | None) -> Adapter:
    """The adapter with other matrices in its first expert (None: without)."""
    (expert, own), *rest = weights[0].items()
    kept = {k: v for k, v in (own | matrices).items() if v is not None}
    return weights | {0: {expert: kept, **dict(rest)}}


CASES: dict[str, tuple[Callable[[Loaded], Any], str]] = {
    "missing layer": (
        lambda s: s.load(s.new | {2: s.new[0]}),
        "no layer 2 with experts; 0, 1 have",
    ),
    "missing expert": (lambda s: s.load({0: {8: first(s.new)}}), "0 to 7, not 8"),
    "no number": (lambda s: s.load({0: {"3": first(s.new)}}), "not '3'"),
    "gate size": (
        lambda s: s.load(changed(s.new, gate_proj=torch.zeros(HIDDEN, INTER))),
        r"gate_proj is torch.float32 \[32, 24\], the layer's is torch.float32 \[24, 32\]",
    ),
    "down size": (
        lambda s: s.load(changed(s.new, down_proj=torch.zeros(INTER, HIDDEN))),
        r"down_proj of expert \d of layer 0 is torch.float32 \[24, 32\]",
    ),
    "gate dtype": (
        lambda s: s.load(changed(s.new, gate_proj=first(s.new)["gate_proj"].bfloat16())),
        "gate_proj is torch.bfloat16",
    ),
    "down dtype": (
        lambda s: s.load(changed(s.new, down_proj=first(s.new)["down_proj"].double())),
        "torch.float64",
    ),
    "half a gate": (lambda s: s.load(changed(s.new, up_proj=None)), "belong together"),
    "no down": (lambda s: s.load(changed(s.new, down_proj=None)), "has gate_up_proj; the layer's"),
    "unknown matrix": (lambda s: s.load(changed(s.new, norm=torch.zeros(2))), "down_proj, gate_up"),
    "stored and separate": (
        lambda s: s.load(changed(s.new, gate_up_proj=torch.zeros(2 * INTER, HIDDEN))),
        "both",
    ),
    "unwanted bias": (
        lambda s: s.load(
            changed(s.new, gate_proj_bias=torch.zeros(INTER), up_proj_bias=torch.zeros(INTER))
        ),
        "in a layer that has them",
    ),
    "no tensor": (lambda s: s.load(changed(s.new, up_proj=[1.0])), "up_proj is no tensor"),  # type: ignore[arg-type]
    "no mapping": (lambda s: s.load({0: [1, 2]}), "layer 0 is something else"),
    "nothing": (lambda s: s.load({}), "brings no expert"),
    "too many": (
        lambda s: s.load(adapter(s.model, 3, {1: 4})),
        "4 experts in layer 1.* room for 3",
    ),
    "twice": (lambda s: s.bank.load("a", s.new), "'a' is loaded already"),
    "unload": (lambda s: s.bank.unload("new"), "not loaded; loaded are: a, b"),
    "router": (
        lambda s: s.load(
            state_dict(s.new) | {"model.layers.0.mlp.gate.weight": torch.zeros(8, 32)}
        ),
        "'model.layers.0.mlp.gate.weight' is no expert's weight",
    ),
    "layer of a file": (
        lambda s: s.load(
            {k.replace("layers.1", "layers.7"): v for k, v in state_dict(s.new).items()}
        ),
        "'model.layers.7.mlp.experts' is no layer",
    ),
    "slot": (lambda s: s.bank.slot("new"), "not loaded"),
    "maps": (lambda s: s.bank.maps(9), "no layer 9"),
    "share": (lambda s: s.bank.load("new", s.new, share=2.0), "share must be"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_adapters_are_named_and_change_nothing(loaded: Loaded, case: str) -> None:
    call, message = CASES[case]
    before = loaded.state()
    with pytest.raises(TilewrightError, match=message):
        call(loaded)
    after = loaded.state()
    assert after[0] == before[0] and after[1] == before[1]


IDS: dict[str, tuple[Any, str]] = {
    "too high": (
        torch.tensor([0, 3]),
        "no adapter in slot 3; -1 is the base, loaded are: 0 .a., 1",
    ),
    "too low": (torch.tensor([-2, 0]), "slot -2"),
    "empty slot": ([None, 2], "no adapter in slot 2"),
    "huge": (torch.tensor([1 << 40]), "slot 1099511627776"),
    "floats": (torch.tensor([0.0, 1.0]), "must be integers; they are torch.float32"),
    "complex": (torch.tensor([1j]), "must be integers; they are torch.complex64"),
    "booleans": (torch.tensor([True]), "must be integers"),
    "unknown": (["a", "x"], "'x' is not loaded; loaded are: a, b"),
    "kind": ([1.5], "not 1.5"),
    "none": ([], "empty"),
}


@pytest.mark.parametrize("case", IDS)
def test_bad_adapter_ids_are_named_before_anything_is_read(loaded: Loaded, case: str) -> None:
    ids, message = IDS[case]
    ran: list[bool] = []
    with pytest.raises(ExpertError, match=message), loaded.bank.adapters(ids):
        ran.append(True)
    assert not ran
    loaded.bank.load("c", loaded.new, share=1.0)
    loaded.bank.unload("c", share=1.0)  # no lease was left behind


def test_ids_that_do_not_divide_the_tokens_are_named(loaded: Loaded) -> None:
    wrong = pytest.raises(ExpertError, match="5 adapter ids for 2 sequences, 12 tokens")
    with loaded.bank.adapters(["a", "b", "a", None, None]), wrong:
        logits(loaded.model, TOKENS)


def test_expert_ids_out_of_range_are_named(loaded: Loaded) -> None:
    layer = layers_of(loaded.model)[0]._tilewright_bank
    with loaded.bank.adapters("a"):
        for wrong in (EXPERTS, -1):
            with pytest.raises(ExpertError, match="expert ids must be in 0 to 7"):
                layer.ids(torch.tensor([[0, wrong]]))


def test_an_adapter_in_use_cannot_be_unloaded(loaded: Loaded) -> None:
    before = loaded.state()
    with loaded.bank.adapters(["a", None]):
        with pytest.raises(ExpertError, match="'a' is in use by 1 calls"):
            loaded.bank.unload("a")
        assert loaded.state()[1] == before[1]
        logits(loaded.model, TOKENS)
    assert loaded.state() == before


def test_all_slots_taken() -> None:
    loaded = Loaded()
    loaded.load(loaded.new)
    before = loaded.state()
    with pytest.raises(ExpertError, match=r"all 3 slots are taken \(a, b, new\)"):
        loaded.bank.load("more", loaded.new)
    assert loaded.state() == before


def test_gpt_oss_adapters_as_stored_with_biases() -> None:
    """Stored form, and biases: given ones count, others are the base's."""
    loaded = Loaded("GptOss")
    module = layers_of(loaded.model)[1]
    keys = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
    expert = {key: torch.randn(module.get_parameter(key).shape[1:]) for key in keys}
    loaded.load({1: {4: expert, 5: {key: expert[key] for key in keys[:2]}}})
    row = loaded.bank.maps(1)[loaded.bank.slot("new")].tolist()
    weights = module._tilewright_bank.weights
    for key in keys:
        assert torch.equal(weights[key][row[4]], expert[key])
        own = expert[key] if key in keys[:2] else module.get_parameter(key)[5]
        assert torch.equal(weights[key][row[5]], own)


def test_files_that_are_none_are_named(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes((99).to_bytes(8, "little") + b"{}")
    (tmp_path / "config.json").write_text(json.dumps({}))
    for path in (tmp_path / "broken.safetensors", tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(DataError):
            loaded.load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no safetensors files"):
        loaded.load(str(tmp_path / "empty"))


def test_quantised_experts_are_refused_by_name() -> None:
    model = make("Qwen3Moe")
    del layers_of(model)[1].gate_up_proj
    with pytest.raises(UnsupportedError, match=r"layers.1.mlp.experts: .* no parameter 'gate_up"):
        ExpertBank(model)
    assert "_tilewright_bank" not in vars(layers_of(model)[0])


@pytest.mark.parametrize(
    ("slots", "options"),
    [
        (2 * 10**9, {}),
        (10**30, {}),
        (2**20, {"kind": "padded", "experts_per_slot": 2000}),
    ],
)
def test_slots_without_room_are_refused_with_their_bytes(
    slots: int, options: dict[str, Any]
) -> None:
    model = make("Qwen3Moe")
    before = logits(model, TOKENS)
    rows = EXPERTS + slots * options.get("experts_per_slot", EXPERTS // 4)
    wanted = f"take {rows * 3 * INTER * HIDDEN * 4:,} bytes .* make slots or experts_per_slot"
    with pytest.raises(ExpertError, match=wanted):
        ExpertBank(model, slots=slots, **options)
    assert torch.equal(logits(model, TOKENS), before)


def test_a_bank_that_has_no_room_for_a_later_layer_leaves_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("Qwen3Moe")
    before, kind = logits(model, TOKENS), type(layers_of(model)[0])

    def none_left(slots: int, experts: int) -> torch.Tensor:
        if layers_of(model)[0].__class__ is not kind:  # the first layer has moved
            raise MemoryError
        return expert_map(slots, experts)

    monkeypatch.setattr(memory, "expert_map", none_left)
    with pytest.raises(ExpertError, match="no room for layer 1"):
        ExpertBank(model, slots=1)
    assert type(layers_of(model)[0]) is kind
    monkeypatch.undo()
    assert torch.equal(logits(model, TOKENS), before)
    ExpertBank(model, slots=1).load("a", adapter(model, 1))
