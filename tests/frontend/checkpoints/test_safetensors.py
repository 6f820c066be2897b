"""The safetensors container: equal to the format's own reader, and never more than its bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.frontend.checkpoints.safetensors import SafetensorsFile
from tilewright.ir.errors import DataError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.int64,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
]


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


@given(st.data())
def test_reads_what_the_own_reader_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    tensors = {}
    for i in range(data.draw(st.integers(1, 5))):
        shape, dtype = data.draw(shapes), data.draw(st.sampled_from(DTYPES))
        numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float32) % 2
        tensors[f"t{i}"] = numbers.to(dtype).reshape(shape)
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    save_file(tensors, path, {"format": "pt"})
    opened = SafetensorsFile(path)
    assert opened.metadata == {"format": "pt"}
    expected = load_file(path)
    assert set(opened.entries) == set(expected)
    for name, tensor in expected.items():
        found = opened.tensor(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        size = tensor.numel() * tensor.element_size()
        if size:
            assert torch.equal(
                found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
            )


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    opened = SafetensorsFile(tmp_path / "m.safetensors")
    opened.tensor("a").zero_()
    assert (tmp_path / "m.safetensors").read_bytes() == before


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"\x00" * 7, "it has 7 bytes"),
        (b"PK\x03\x04" + bytes(100), "is a pickle of torch.save"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "is a pickle"),
        (raw({}, length=2**63), "9223372036854775808 bytes of header"),
        (raw({}, length=3), "3 bytes of header: the file is truncated"),
        (raw(b"{"), "must have a JSON header"),
        (raw(b"\xff\xfe"), "must have a JSON header"),
        (raw(b"[" * 100_000), "its header is nested too deeply"),
        (raw([]), "its header must be a JSON object"),
        (raw(b'{"a": {}, "a": {}}'), "it names 'a' twice"),
        (raw({"__metadata__": [1]}), "__metadata__ must map names to text"),
        (raw({"a": 3}), "a must be a JSON object"),
        (raw({"a": {**F32, "dtype": "F99"}}, bytes(8)), "a must have a dtype known here"),
        (raw({"a": {**F32, "shape": [-2]}}, bytes(8)), "a must have a shape"),
        (raw({"a": {**F32, "shape": [2**63]}}, bytes(8)), "a must have a shape"),
        (raw({"a": {**F32, "shape": [True, 2]}}, bytes(8)), "a must have a shape"),
        (raw({"a": {**F32, "shape": None}}, bytes(8)), "a must have a shape"),
        (raw({"a": {**F32, "data_offsets": [0]}}, bytes(8)), "two data_offsets"),
        (raw({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)), "a must lie within the 8 bytes"),
        (raw({"a": F32}, bytes(7)), "a must lie within the 7 bytes of data; .* truncated"),
        (
            raw({"a": {**F32, "shape": [3]}}, bytes(8)),
            r"a as F32 \[3\] must take 12 bytes; it has 8",
        ),
        (
            raw({"a": {**F32, "shape": [2**40, 2**40]}}, bytes(8)),
            "a as F32 .* must take 4835703278458516698824704 bytes",
        ),
        (raw({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)), "must not overlap"),
    ],
)
def test_damaged_and_hostile_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_checkpoint(path)


@given(st.data())
def test_damage_never_gets_past_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is changed or cut off: our error, or what the format's own reader says, too."""
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.arange(7), "c": torch.zeros(2).half()}, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        opened = SafetensorsFile(path)
        read = {name: opened.tensor(name) for name in opened.entries}
    except DataError as error:
        assert str(path) in str(error)
        return
    try:
        expected = load_file(path)
    except (SafetensorError, KeyError, ValueError):
        return  # the own reader refuses gaps, too, which do no harm
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert read[name].shape == tensor.shape
