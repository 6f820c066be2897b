"""Converting: the same values, all or nothing, and what transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.frontend.checkpoints.test_bitsandbytes import layer as bitsandbytes_layer
from tests.frontend.checkpoints.test_gguf import rows_of
from tests.frontend.checkpoints.test_gguf import write as write_gguf
from tests.frontend.checkpoints.test_hqq import layer as hqq_layer
from tests.frontend.checkpoints.writers import awq_layer, folder, gptq_layer, under
from tilewright.frontend.checkpoints import convert, convert_checkpoint, open_checkpoint
from tilewright.frontend.quantize.plan import Plan
from tilewright.ir.errors import DataError, SettingError
from tilewright.runtime.quantized.storage import load
from tilewright.runtime.quantized.tensor import QuantizedTensor


def mixed(path: Path, **more: torch.Tensor) -> Path:
    """GPTQ with an order, AWQ, stacked MXFP4 experts, and plain tensors."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (16, 64), generator=generator)
    zeros = torch.full((16, 2), 8)
    scales = (torch.rand(16, 2, generator=generator) + 0.1).half()
    order = torch.randperm(64, generator=generator).to(torch.int32) // 32
    tensors = {
        **under("model.a", {**gptq_layer(codes, zeros, scales, 4), "g_idx": order}),
        **under("model.b", awq_layer(codes, zeros, scales)),
        "experts.up_blocks": torch.randint(256, (2, 8, 3, 16), generator=generator).to(torch.uint8),
        "experts.up_scales": torch.full((2, 8, 3), 120, dtype=torch.uint8),
        "model.embed.weight": torch.randn(20, 64, generator=generator),
        "model.head.weight": torch.randn(20, 64, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(64),
        **more,
    }
    return folder(path, tensors, {"quant_method": "gptq", "bits": 4})


def values(path: Path) -> dict[str, torch.Tensor]:
    """Every weight and every plain tensor, by name, as numbers."""
    opened = open_checkpoint(path)
    assert not opened.problems
    read = {name: opened.read(name).dequantize() for name in opened.weights}
    return read | {name: opened.tensor(name) for name in opened.plain}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_values_stay_what_they_are(tmp_path: Path, name: str) -> None:
    source = mixed(tmp_path / "m")
    report = convert_checkpoint(open_checkpoint(source), tmp_path / name)
    assert sorted(row.name for row in report.rows) == ["experts.up", "model.a", "model.b"]
    assert same(values(source), values(tmp_path / name))
    formats = {w.format for w in open_checkpoint(tmp_path / name).weights.values()}
    assert formats == {"tilewright"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    # and once more: what tilewright wrote is a checkpoint as any other
    convert_checkpoint(open_checkpoint(tmp_path / name), tmp_path / "again")
    assert same(values(source), values(tmp_path / "again"))


def of_every_kind() -> dict[str, torch.Tensor]:
    """What a form has to keep: a table, a scale of the tensor, one scale in all, another axis."""
    codes = torch.randint(16, (8, 64), generator=torch.Generator().manual_seed(0))
    fp4, nf4 = (bitsandbytes_layer(codes, torch.ones(8), kind, 64) for kind in ("fp4", "nf4"))
    return {
        **{name.replace("q_proj", "fp4"): tensor for name, tensor in fp4.items()},
        **nf4,
        **hqq_layer(3, 48, 64, 16, 0)[0],
        "fp8.weight": torch.randn(8, 16).to(torch.float8_e4m3fn),
        "fp8.weight_scale": torch.tensor([0.3]),
        "nv.weight": torch.arange(64, dtype=torch.uint8).view(4, 16),
        "nv.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn),
        "nv.weight_scale_2": torch.tensor(0.7),
    }


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_every_kind_of_tensor(tmp_path: Path, name: str) -> None:
    source = folder(tmp_path / "m", of_every_kind())
    convert_checkpoint(open_checkpoint(source), tmp_path / name)
    found = values(tmp_path / name)
    assert len(found) == 5 and same(values(source), found)


def test_one_file_is_what_storage_loads(tmp_path: Path) -> None:
    source = mixed(tmp_path / "m")
    convert_checkpoint(open_checkpoint(source), tmp_path / "out.safetensors")
    loaded = load(tmp_path / "out.safetensors")
    expected = values(source)
    assert set(loaded) == set(expected)
    for name, tensor in loaded.items():
        found = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
        assert torch.equal(found, expected[name])


def test_gguf(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q6_K
    data = rows_of(kind, (4, 512))
    path = write_gguf(tmp_path / "m.gguf", {"blk.0.attn_q.weight": (kind, data)})
    convert_checkpoint(open_checkpoint(path), tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").read("blk.0.attn_q").dequantize()
    np.testing.assert_array_equal(found.numpy(), gguf.quants.dequantize(data, kind))


def test_the_folder_says_who_reads_it(tmp_path: Path) -> None:
    source = mixed(tmp_path / "m")
    (source / "tokenizer.json").write_text("{}")
    (source / "quantize_config.json").write_text("{}")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "secret").write_text("a key")
    (source / "merges.txt").symlink_to(tmp_path / "secret")
    plan = Plan.of("u8", {"*.head": None, "model.b": {"dtype": "u6", "group": 8}}, group=32)
    report = convert_checkpoint(open_checkpoint(source), tmp_path / "out", plan)
    assert report.not_copied == ["merges.txt"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    pytest.importorskip("transformers")
    from tilewright.frontend.huggingface_quantizer import TilewrightConfig

    assert config["quantization_config"] == TilewrightConfig.of_plan(plan).to_dict()
    convert_checkpoint(open_checkpoint(source), tmp_path / "without")
    config = json.loads((tmp_path / "without" / "config.json").read_text())
    assert config["quantization_config"] == TilewrightConfig(None).to_dict()


def test_a_plan_quantises_plain_weights_and_named_ones_anew(tmp_path: Path) -> None:
    source = mixed(tmp_path / "m")
    plan = Plan.of("u8", {"*.head": None, "model.b": "u6", "*.nothing": "u2"}, group=32)
    report = convert_checkpoint(open_checkpoint(source), tmp_path / "out", plan)
    opened = open_checkpoint(tmp_path / "out")
    kinds = {name: weight.dtype for name, weight in opened.weights.items()}
    assert kinds == {
        "model.a": "u4",
        "model.b": "u6",
        "experts.up": "f4e2m1",
        "model.embed": "u8",
    }
    assert report.unused_patterns == ["*.nothing"]
    assert set(opened.plain) == {"model.head.weight", "model.norm.weight"}
    expected = QuantizedTensor.from_float(values(source)["model.b"], "u6", 32)
    assert torch.equal(opened.read("model.b").dequantize(), expected.dequantize())


def test_a_plain_weight_that_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    wrong = {"model.head.weight": torch.full((20, 64), float("nan"))}
    source = mixed(tmp_path / "m", **wrong)
    with pytest.raises(DataError, match=r"model\.head\.weight.*1280 of 1280"):
        convert_checkpoint(open_checkpoint(source), tmp_path / "out", Plan.of("u4"))
    assert not (tmp_path / "out").exists()


def test_files_of_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_SHARD", 1000)
    source = mixed(tmp_path / "m")
    convert_checkpoint(open_checkpoint(source), tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert same(values(source), values(tmp_path / "out"))


def broken(path: Path, kind: str) -> Path:
    """A checkpoint whose last layer is wrong: in its header, or only in its contents."""
    layer = under(
        "z",
        awq_layer(
            *(torch.ones(16, n, dtype=torch.int64) for n in (64, 2)), torch.ones(16, 2).half()
        ),
    )
    if kind == "header":
        del layer["z.qzeros"]
    else:
        layer["z.scales"] = torch.full((2, 16), float("nan")).half()
    return mixed(path, **layer)


@pytest.mark.parametrize("kind", ["header", "contents"])
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, kind: str, name: str) -> None:
    source = broken(tmp_path / "m", kind)
    with pytest.raises(DataError, match=r"z\.(qzeros is missing|scales must hold finite scales)"):
        convert_checkpoint(open_checkpoint(source), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    source = mixed(tmp_path / "m")
    monkeypatch.setattr(convert, "_copy_beside", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(open_checkpoint(source), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_read_is_kept_if_asked_for(tmp_path: Path) -> None:
    source = broken(tmp_path / "m", "header")
    report = convert_checkpoint(open_checkpoint(source), tmp_path / "out", keep_unread=True)
    assert "z.qzeros is missing" in report.unread["z"]
    opened = open_checkpoint(tmp_path / "out")
    assert torch.equal(opened.tensor("z.qweight"), open_checkpoint(source).tensor("z.qweight"))
    assert set(opened.weights) == {"model.a", "model.b", "experts.up", "z"}
    assert "z" in opened.problems


def test_places_that_do_not_do(tmp_path: Path) -> None:
    opened = open_checkpoint(mixed(tmp_path / "m"))
    with pytest.raises(SettingError, match="is there already"):
        convert_checkpoint(opened, tmp_path / "m")
    with pytest.raises(SettingError, match="is not a folder"):
        convert_checkpoint(opened, tmp_path / "no" / "out")
    with pytest.raises(SettingError, match="'gptq' needs inputs"):
        convert_checkpoint(opened, tmp_path / "out", Plan.of("u4", method="gptq"))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_transformers_loads_a_converted_model(tmp_path: Path) -> None:
    """A GPTQ model, converted, gives the logits of the model with its dequantised weights."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tilewright.frontend.huggingface_quantizer")  # makes itself known
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in list(model.state_dict().items()):
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        quantized = QuantizedTensor.from_float(weight, "u4", 32)
        tensors |= under(
            name.removesuffix(".weight"),
            gptq_layer(
                quantized.codes().long(), quantized.zeros.long(), quantized.scales.half(), 4, "v2"
            ),
        )
        weight.copy_(quantized.dequantize())
    source = folder(tmp_path / "m", tensors)
    config.save_pretrained(source)
    written = json.loads((source / "config.json").read_text())
    written["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "checkpoint_format": "gptq_v2",
    }
    (source / "config.json").write_text(json.dumps(written))
    opened = open_checkpoint(source, zero_rule="v2")
    convert_checkpoint(opened, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    indices = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(indices).logits, model(indices).logits, rtol=1e-4, atol=1e-5
        )
