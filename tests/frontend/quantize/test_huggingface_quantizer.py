"""transformers' ``quantization_config=TilewrightConfig(…)``: quantise while loading, save, load."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tilewright
from tilewright import quantize
from tilewright.frontend.quantize.layers import QuantizedLinear
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.runtime.quantized.tensor import QuantizedTensor

transformers = pytest.importorskip("transformers")
from tilewright import TilewrightConfig  # noqa: E402

PLAN = {"*.down_proj": "u6", "*.layers.1.mlp.up_proj": None, "lm_head": "u8"}
SETTINGS: dict[str, Any] = {"group": 32, "plan": PLAN, "activation": "int8"}
IDS = torch.arange(14).reshape(2, 7) * 5 % 64


def llama(tied: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=72,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def load(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, **options
    )


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A model, and the folder that it was saved in."""
    model = llama(request.param)
    model.save_pretrained(tmp_path / "plain")
    return model, tmp_path / "plain"


def test_loading_quantises_as_quantize_does(saved: tuple[Any, Path]) -> None:
    model, path = saved
    loaded, info = load(path, quantization_config=TilewrightConfig("u4", **SETTINGS))
    report = quantize(model, "u4", **SETTINGS)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.hf_quantizer.report.to_dict() == report.to_dict()
    assert not any(info.values())
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert type(loaded.model.layers[1].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("loaded_first", [False, True])
def test_saving_and_loading_is_exact(
    saved: tuple[Any, Path], tmp_path: Path, loaded_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved
    if loaded_first:
        model, _ = load(path, quantization_config=TilewrightConfig("u4", **SETTINGS))
    else:
        quantize(model, "u4", **SETTINGS)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "once")
    monkeypatch.setattr(QuantizedTensor, "from_float", _refuse)
    monkeypatch.setattr(QuantizedTensor, "dequantize", _refuse)
    for source, target in (("once", "twice"), ("twice", "thrice")):
        with Floats() as floats:
            loaded, info = load(tmp_path / source)
        assert not any(info.values())
        # what is left alone, layers.1.mlp.up_proj, is made; smaller ones are rotations and scales
        assert {shape for shape in floats.shapes if shape.numel() >= 48 * 24} <= {(72, 48)}
        loaded.save_pretrained(tmp_path / target)
    monkeypatch.undo()
    assert torch.equal(logits(loaded), wanted)
    assert loaded.model.layers[0].mlp.gate_proj.activation == "int8"
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    size = (tmp_path / "thrice" / "model.safetensors").stat().st_size
    assert size == (tmp_path / "once" / "model.safetensors").stat().st_size
    assert size < (path / "model.safetensors").stat().st_size


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("loading neither quantises nor dequantises")


class Floats(TorchDispatchMode):
    """The shapes of all tensors of f32 that are made in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32 and not x.is_meta:
                self.shapes.add(x.shape)
        return result


def test_what_a_filter_left_is_left_when_loaded(tmp_path: Path) -> None:
    model = llama()
    quantize(model, "u4", group=32, filter=lambda module, name: "mlp" in name)
    model.save_pretrained(tmp_path)
    loaded, info = load(tmp_path)
    assert not any(info.values())
    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded.model.layers[0].self_attn.q_proj) is torch.nn.Linear


def test_a_base_model_loads_from_the_whole_one_and_back(tmp_path: Path) -> None:
    model = llama()
    quantize(model, "u4", **SETTINGS)
    model.save_pretrained(tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        wanted = model.model(IDS).last_hidden_state
        assert torch.equal(base(IDS).last_hidden_state, wanted)


def test_shards(tmp_path: Path) -> None:
    model = llama()
    quantize(model, "u4", **SETTINGS)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, _ = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_a_weight_that_cannot_be_quantised_is_loaded_and_told(tmp_path: Path) -> None:
    model = llama(tied=True)
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path, quantization_config=TilewrightConfig("u4", group=32))
    left = {row.name: row.reason for row in loaded.hf_quantizer.report.left_alone}
    assert "must be finite" in left["model.embed_tokens"] and "must be finite" in left["lm_head"]
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert isinstance(loaded.model.layers[0].mlp.up_proj, QuantizedLinear)


def test_generation_and_half_precision(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    config = TilewrightConfig("u8", group=32)
    loaded, _ = load(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    assert logits(loaded).dtype == torch.bfloat16
    tokens = loaded.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape == (2, 10)


def test_a_whole_model_compiles_with_its_attention() -> None:
    model = llama()
    quantize(model, "u8", group=32)
    compiled = tilewright.compile(model, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits, rtol=1e-3, atol=1e-4)
    report = compiled.explain()
    assert [region.status for region in report.regions].count("kernel") >= 2


def test_the_settings_survive_json() -> None:
    config = TilewrightConfig("u4", **SETTINGS, symmetric=True)
    text = config.to_json_string()
    again = TilewrightConfig.from_dict(json.loads(text))
    assert again.to_plan() == config.to_plan()
    assert [pattern for pattern, _ in again.to_plan().rows] == list(PLAN)
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    nothing = TilewrightConfig(None, plan={"lm_head": "u8"})
    assert TilewrightConfig.from_dict(nothing.to_dict()).to_plan() == nothing.to_plan()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtype": "u4", "bits": 3}, SettingError, "no setting 'bits'"),
        ({"dtype": "u4", "quant_method": "gptq"}, SettingError, "is not 'tilewright'"),
        ({"dtype": "u4", "version": 99}, UnsupportedError, "newer tilewright"),
    ],
)
def test_configurations_that_mean_nothing(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        TilewrightConfig(**arguments)


def test_a_checkpoint_without_its_words_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = llama()
    quantize(model, "u4", **SETTINGS)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.layers.0.mlp.up_proj.weight.words"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"no model\.layers\.0\.mlp\.up_proj\.weight\.words"):
        load(tmp_path)
