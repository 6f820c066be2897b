"""Quantised experts of whole models: results, ``quantization_config``, saving and loading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frontend.huggingface_experts import IDS, NAMES, causal, dequantised, logits
from tilewright import quantize
from tilewright.frontend.experts.weights import ExpertWeight, ExpertWeights
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

transformers = pytest.importorskip("transformers")
from tilewright import TilewrightConfig  # noqa: E402

PLAN = {
    "*.experts.1.down_proj": "u8",
    "*.experts.down_proj": "u4",
    "*.experts.gate_up_proj": {"dtype": "u4", "activation": "int8"},
    "lm_head": "u8",
}
SETTINGS: dict[str, Any] = {"group": 32, "plan": PLAN}


def load(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_models_match_their_dequantised_weights(name: str) -> None:
    model = causal(name)
    original = copy.deepcopy(model)
    plan = {"*.experts.1.down_proj": "u8", "*.experts.down_proj": "u4", "*.gate_up_proj": "u4"}
    report = quantize(model, None, plan=plan, group=32)
    assert model.config._experts_implementation == "tilewright"
    assert report.unused_patterns == []
    reference = dequantised(model, original)
    reference.set_experts_implementation("eager")
    wanted = logits(reference)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    assert (logits(original) - wanted).abs().max() > 1e-2  # rounding to 4 bits is to be seen


@pytest.mark.parametrize("name", NAMES)
def test_loading_quantises_as_quantize_does_and_saving_is_exact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = causal(name)
    model.save_pretrained(tmp_path / "plain")
    loaded, info = load(tmp_path / "plain", quantization_config=TilewrightConfig(None, **SETTINGS))
    assert not any(info.values())
    report = quantize(model, None, **SETTINGS)
    assert loaded.hf_quantizer.report.to_dict() == report.to_dict()
    wanted = logits(model)
    assert torch.equal(logits(loaded), wanted)
    loaded.save_pretrained(tmp_path / "once")
    model.save_pretrained(tmp_path / "beside", max_shard_size="30KB")
    monkeypatch.setattr(QuantizedTensor, "from_float", _refuse)
    monkeypatch.setattr(QuantizedTensor, "dequantize", _refuse)
    for source, target in (("once", "twice"), ("beside", "thrice"), ("twice", "last")):
        again, info = load(tmp_path / source)
        assert not any(info.values())
        assert again.config._experts_implementation == "tilewright"
        again.save_pretrained(tmp_path / target)
    monkeypatch.undo()
    assert torch.equal(logits(again), wanted)
    experts = next(m for m in again.modules() if hasattr(m, "gate_up_proj_packed"))
    assert isinstance(experts.down_proj_packed, ExpertWeights)
    assert isinstance(experts.gate_up_proj_packed, ExpertWeight)
    assert experts.gate_up_proj_packed.activation == "int8"
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("plain", "once", "last")]
    assert sizes[1] == sizes[2] < sizes[0]


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("loading neither quantises nor dequantises")


def test_a_base_model_loads_and_generation_goes_on(tmp_path: Path) -> None:
    model = causal("Mixtral")  # whose files have other names than the model
    quantize(model, None, **SETTINGS)
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model.model(IDS).last_hidden_state
        assert torch.equal(base(IDS).last_hidden_state, wanted)
    loaded, _ = load(tmp_path)
    new = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(IDS, **new), model.generate(IDS, **new))


def test_experts_that_cannot_be_quantised_are_loaded_and_told(tmp_path: Path) -> None:
    model = causal("Qwen3Moe")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1, 2, 3] = float("inf")
    model.save_pretrained(tmp_path / "plain")
    config = TilewrightConfig(None, plan={"*.experts.*": "u4"}, group=32)
    loaded, _ = load(tmp_path / "plain", quantization_config=config)
    left = {row.name: row.reason for row in loaded.hf_quantizer.report.left_alone}
    assert "must be finite" in left["model.layers.0.mlp.experts.down_proj"]
    experts = loaded.model.layers[0].mlp.experts
    assert torch.equal(experts.down_proj, model.model.layers[0].mlp.experts.down_proj)
    loaded.save_pretrained(tmp_path / "small")
    again, info = load(tmp_path / "small")
    assert not any(info.values())
    assert torch.equal(again.model.layers[0].mlp.experts.down_proj, experts.down_proj)


def test_a_checkpoint_without_an_experts_words_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = causal("Qwen3Moe")
    quantize(model, None, **SETTINGS)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.layers.0.mlp.experts.down_proj_packed.2.words"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"no model\.layers\.0.*down_proj_packed\.2\.words"):
        load(tmp_path)
