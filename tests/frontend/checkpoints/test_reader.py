"""Opening files and folders: indices, pickles, and layers that belong to no format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.frontend.checkpoints.test_gguf import rows_of
from tests.frontend.checkpoints.test_gguf import write as write_gguf
from tests.frontend.checkpoints.writers import awq_layer, folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import (
    BackendMissingError,
    DataError,
    SettingError,
    TilewrightError,
    UnsupportedError,
)


def layer(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (16, 64), generator=generator)
    zeros = torch.randint(16, (16, 2), generator=generator)
    return awq_layer(codes, zeros, torch.ones(16, 2).half())


def shards(path: Path, **changes: Any) -> Path:
    """Two layers in two files and their index."""
    path.mkdir()
    first, second = under("a", layer(1)), {**under("b", layer(2)), "norm.weight": torch.ones(4)}
    for name, state in (("one", first), ("two", second)):
        kept = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}
        save_file(kept, path / f"{name}.safetensors")
    names = {**dict.fromkeys(first, "one.safetensors"), **dict.fromkeys(second, "two.safetensors")}
    index = {"metadata": {}, "weight_map": {**names, **changes}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_files_that_an_index_names(tmp_path: Path) -> None:
    path = shards(tmp_path / "m")
    opened = open_checkpoint(path)
    assert set(opened.weights) == {"a", "b"} and opened.plain == ("norm.weight",)
    again = open_checkpoint(path / "model.safetensors.index.json")
    assert torch.equal(again.read("b").dequantize(), opened.read("b").dequantize())
    alone = open_checkpoint(path / "one.safetensors")
    assert set(alone.weights) == {"a"}


@pytest.mark.parametrize(
    "name",
    [
        "../one.safetensors",
        "/etc/one.safetensors",
        "x/../../one.safetensors",
        "..\\one.safetensors",
        "C:one.safetensors",
        "\0.safetensors",
    ],
)
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    path = shards(tmp_path / "m", **{"a.qweight": name})
    with pytest.raises(DataError, match="must name files within its folder"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a.qweight": "three.safetensors"},
            "three.safetensors is missing; .* has 1 tensors in it",
        ),
        ({"a.qweight": "two.safetensors"}, "a.qweight must be in two.safetensors"),
        ({"c": "two.safetensors"}, "c must be in two.safetensors, as .* says; it is not"),
        ({"a.qweight": "pytorch_model.bin"}, "must name safetensors files"),
        ({"a.qweight": 3}, "weight_map must map tensors to files"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_checkpoint(shards(tmp_path / "m", **changes))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "m.ckpt", "m.pkl"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_pickles_are_never_opened(tmp_path: Path, name: str, as_folder: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save(Bomb(), tmp_path / name)
    with pytest.raises(UnsupportedError, match=r"is a pickle.*safetensors"):
        open_checkpoint(tmp_path if as_folder else tmp_path / name)
    torch.save(Bomb(), tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"is a pickle of torch\.save"):
        open_checkpoint(tmp_path / "model.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_tensors_that_look_quantised_but_belong_to_nothing(tmp_path: Path) -> None:
    tensors = {
        "x.qzeros": torch.zeros(2, 2, dtype=torch.int32),
        "y.weight": torch.zeros(4, 4, dtype=torch.int8),
        "positions": torch.arange(5),
    }
    opened = open_checkpoint(folder(tmp_path / "m", tensors))
    assert set(opened.problems) == {"x.qzeros", "y.weight"}
    assert opened.plain == ("positions",)
    assert "I8 [4, 4] looks like codes" in opened.problems["y.weight"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"must hold \.safetensors, \.gguf or \.onnx files"):
        open_checkpoint(tmp_path)
    opened = open_checkpoint(folder(tmp_path / "m", under("a", layer())))
    with pytest.raises(SettingError, match="has no quantised weight 'b'; it has a"):
        opened.read("b")
    with pytest.raises(DataError, match="b is missing"):
        opened.tensor("b")
    with pytest.raises(SettingError, match="zero_rule='v3' must be one of v1, v2"):
        open_checkpoint(tmp_path / "m", zero_rule="v3")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "must be JSON"), ("[]", "must hold a JSON object"), ("[" * 100_000, "must be JSON")],
)
def test_a_configuration_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = folder(tmp_path / "m", under("a", layer()))
    (path / "config.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_checkpoint(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = (
    "bits",
    "group_size",
    "quant_method",
    "checkpoint_format",
    "version",
    "meta",
    "config_groups",
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_configuration(
    tmp_path_factory: pytest.TempPathFactory, quantization: dict[str, Any]
) -> None:
    """It may be wrong in any way: the layers are read by their shapes, or refused by name."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (16, 64), generator=generator)
    zeros = torch.full((16, 2), 8)
    tensors = under("g", gptq_layer(codes, zeros, torch.ones(16, 2).half(), 4))
    tensors |= under("a", layer())
    path = folder(tmp_path_factory.mktemp("config") / "m", tensors, quantization)
    opened = open_checkpoint(path)
    assert set(opened.weights) == {"a", "g"}
    for name, weight in opened.weights.items():
        try:
            found = opened.read(name)
        except TilewrightError as error:
            assert name in str(error) or weight.problem
        else:
            assert found.shape == (16, 64) and (name == "a" or found.zeros.unique().tolist() == [8])


@pytest.mark.parametrize(("name", "package"), [("m.gguf", "gguf"), ("m.onnx", "onnx")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    write_gguf(tmp_path / "m.gguf", {"w": (kind, rows_of(kind, (1, 32)))})
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendMissingError, match=rf"package {package}: pip install .*checkpoints"):
        open_checkpoint(tmp_path / name)


def test_names_do_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a\x1b[2Jb": torch.ones(2)})
    with pytest.raises(DataError, match=r"names must be printable; 'a\\x1b\[2Jb' is not"):
        open_checkpoint(path)
