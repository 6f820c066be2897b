"""State dicts and files of quantised tensors: everything comes back, and nothing wrong gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given

from tests.runtime.quantized.drawing import Parts, parts
from tilewright import QuantizedTensor, table_dtype
from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import DataError
from tilewright.runtime.quantized.storage import load, save

pytest.importorskip("safetensors")
FIELDS = ("dtype", "shape", "group", "axis", "layout", "zero_point", "tensor_scale", "scale_dtype")


def same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    """Every field and every bit."""
    for name in FIELDS:
        assert getattr(a, name) == getattr(b, name), name
    mine, theirs = dict(a.parts()), dict(b.parts())
    assert mine.keys() == theirs.keys()
    for name, part in mine.items():
        assert part.dtype == theirs[name].dtype and torch.equal(part, theirs[name]), name


def example() -> QuantizedTensor:
    return QuantizedTensor.from_codes(
        torch.randint(0, 16, (20, 50)),
        torch.rand(20, 4) + 0.5,
        torch.randint(0, 16, (20, 4)),
        dtype="u4",
        group=16,
        order=torch.randperm(50),
    )


@given(parts())
def test_a_state_dict_holds_everything(given_parts: Parts) -> None:
    tensor = given_parts.tensor()
    state = tensor.state_dict("layer.weight.")
    assert all(key.startswith("layer.weight.") for key in state)
    same(QuantizedTensor.from_state_dict(state, "layer.weight."), tensor)


def test_a_file_holds_quantised_and_other_tensors(tmp_path: Path) -> None:
    tensors: dict[str, QuantizedTensor | torch.Tensor] = {
        "a.weight": example(),
        "a.bias": torch.randn(20),
        "b.weight": QuantizedTensor.from_float(torch.randn(3, 9, 40), "f6e3m2", 16, axis=-2),
        "c": QuantizedTensor.from_float(torch.randn(9, 40), "f4e2m1", 16, scale_dtype="f8e4m3"),
    }
    path = tmp_path / "model.safetensors"
    save(path, tensors)
    back = load(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        got = back[name]
        if isinstance(tensor, QuantizedTensor):
            assert isinstance(got, QuantizedTensor)
            same(got, tensor)
        else:
            assert torch.equal(got, tensor)
    assert list(tmp_path.iterdir()) == [path]


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    tensor = example()
    save(tmp_path / "x", {"in": tensor, "out": tensor})
    back = load(tmp_path / "x")
    assert isinstance(back["in"], QuantizedTensor) and isinstance(back["out"], QuantizedTensor)
    same(back["in"], back["out"])


def test_a_table_of_ones_own_is_in_the_file(tmp_path: Path) -> None:
    table_dtype("stored_test", [-1.0, 0.0, 0.25, 1.0])
    tensor = QuantizedTensor.from_float(torch.randn(5, 8), "stored_test", 4)
    save(tmp_path / "x", {"w": tensor})
    del TABLE["stored_test"]
    try:
        got = load(tmp_path / "x")["w"]
        assert isinstance(got, QuantizedTensor)
        same(got, tensor)
        del TABLE["stored_test"]
        table_dtype("stored_test", [0.0, 1.0])
        with pytest.raises(DataError, match="other values"):
            load(tmp_path / "x")
    finally:
        TABLE.pop("stored_test", None)


def test_a_file_is_written_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"before")
    with pytest.raises(DataError, match="two tensors"):
        save(path, {"w": example(), "w.words": torch.zeros(1)})

    def full_disk(_: object, target: str, __: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(path, {"w": example()})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model"
    save(path, {"w": example()})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load(path)


def form_with(**fields: object) -> torch.Tensor:
    """The form of the example with other fields."""
    state = bytes(example().state_dict()["form"].tolist())
    text = json.dumps({**json.loads(state), **fields}).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


State = dict[str, torch.Tensor]
DAMAGE: dict[str, tuple[Callable[[State], object], str]] = {
    "no words": (lambda s: s.pop("w.words"), r"w\.words is missing"),
    "no form": (lambda s: s.pop("w.form"), r"w\.form is missing; under 'w\.' there is w\.order"),
    "words of another shape": (
        lambda s: s.update({"w.words": s["w.words"][:1]}),
        r"w\.words must be \[2, 8, 1, 16\] .*it is \[1, 8, 1, 16\]",
    ),
    "words as floats": (
        lambda s: s.update({"w.words": s["w.words"].float()}),
        r"w\.words must be int32 .*it is float32",
    ),
    "scales of another dtype": (
        lambda s: s.update({"w.scales": s["w.scales"].half()}),
        r"w\.scales must be float32 .*it is float16",
    ),
    "scales with NaN": (
        lambda s: s["w.scales"][1, 2].fill_(torch.nan),
        r"w\.scales must be finite",
    ),
    "zeros of too few groups": (
        lambda s: s.update({"w.zeros": s["w.zeros"][:, :3]}),
        r"w\.zeros must be \[2, 4, 16\]",
    ),
    "an order that repeats": (lambda s: s["w.order"][:2].fill_(0), r"w\.order must hold each"),
    "a form that is no text": (
        lambda s: s.update({"w.form": torch.full((9,), 255, dtype=torch.uint8)}),
        r"w\.form is not that",
    ),
    "a form of floats": (
        lambda s: s.update({"w.form": torch.zeros(3)}),
        r"w\.form must be uint8",
    ),
    "a negative group": (lambda s: s.update({"w.form": form_with(group=-1)}), r"w\.form must have"),
    "another group": (
        lambda s: s.update({"w.form": form_with(group=32)}),
        r"w\.layout .* groups of 32",
    ),
    "another width": (
        lambda s: s.update({"w.form": form_with(dtype="u5")}),
        r"w\.layout .* 5 bits",
    ),
    "no such dtype": (lambda s: s.update({"w.form": form_with(dtype="u9")}), r"w\.dtype='u9'"),
    "a layout of nothing": (
        lambda s: s.update({"w.form": form_with(layout="x")}),
        r"w\.no packing",
    ),
    "an infinite scale": (
        lambda s: s.update({"w.form": form_with(tensor_scale=float("inf"))}),
        r"w\.form must have",
    ),
    "a shape of text": (lambda s: s.update({"w.form": form_with(shape="ab")}), r"w\.form is not"),
    "a list": (
        lambda s: s.update({"w.form": torch.tensor(list(b"[1]"), dtype=torch.uint8)}),
        r"w\.form is not",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str) -> None:
    change, message = DAMAGE[damage]
    state = {key: part.clone() for key, part in example().state_dict("w.").items()}
    change(state)
    with pytest.raises(DataError, match=message):
        QuantizedTensor.from_state_dict(state, "w.")
