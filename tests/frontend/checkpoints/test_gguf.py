"""GGUF: equal to ``gguf.quants.dequantize`` of files that the gguf package wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError, UnsupportedError

# where the f16 numbers of a block lie, and whether it has a minimum
HALVES: dict[Type, tuple[tuple[int, ...], bool]] = {
    Type.Q4_0: ((0,), False),
    Type.Q4_1: ((0, 2), True),
    Type.Q5_0: ((0,), False),
    Type.Q5_1: ((0, 2), True),
    Type.Q8_0: ((0,), False),
    Type.Q2_K: ((80, 82), True),
    Type.Q3_K: ((108,), False),
    Type.Q4_K: ((0, 2), True),
    Type.Q5_K: ((0, 2), True),
    Type.Q6_K: ((208,), False),
    Type.MXFP4: ((), False),
    Type.IQ4_NL: ((0,), False),
}
FORMATS = {
    "Q4_0": ("i4", 32),
    "Q4_1": ("u4", 32),
    "Q5_0": ("i5", 32),
    "Q5_1": ("u5", 32),
    "Q8_0": ("i8", 32),
    "Q2_K": ("u2", 16),
    "Q3_K": ("i3", 16),
    "Q4_K": ("u4", 32),
    "Q5_K": ("u5", 32),
    "Q6_K": ("i6", 16),
    "MXFP4": ("f4e2m1", 32),
    "IQ4_NL": ("iq4nl", 32),
}
Bytes = npt.NDArray[np.uint8]


def blocks(kind: Type, count: int, seed: int = 0) -> Bytes:
    """Random bits everywhere, but for the f16 scales and minima, which are random numbers."""
    generator = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    made = generator.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[kind][0]:
        numbers = generator.normal(size=count).astype(np.float16)
        made[:, at : at + 2] = numbers.view(np.uint8).reshape(count, 2)
    if kind is Type.MXFP4:
        made[:, 0] = generator.integers(0, 250, count)
    return made


def write(path: Path, tensors: dict[str, tuple[Type, Bytes]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(300)])
    writer.add_array("some.numbers", list(range(300)))
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.arange(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rows_of(kind: Type, shape: tuple[int, ...], seed: int = 0) -> Bytes:
    """uint8 [..., N, bytes of a row] of a tensor [..., N, K]."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    made = blocks(kind, int(np.prod(shape)) // elements, seed)
    return made.reshape(*shape[:-1], shape[-1] // elements * size)


def assert_equal(
    kind: Type, found: torch.Tensor, expected: npt.NDArray[np.float32], group: int
) -> None:
    """Bit by bit; with a minimum, to 2**-22 of the largest value of the group."""
    ours, theirs = found.numpy(), expected.reshape(found.shape)
    if not HALVES[kind][1]:
        np.testing.assert_array_equal(ours, theirs)
        return
    size = np.abs(theirs).reshape(-1, group).max(1, keepdims=True)
    error = np.abs(ours.astype(np.float64) - theirs).reshape(-1, group)
    assert (error <= 2.0**-22 * size).all(), (error / np.maximum(size, 1e-30)).max() * 2**22


@pytest.mark.parametrize("kind", HALVES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(3, 512), (2, 3, 256)], ids=["matrix", "experts"])
def test_equal_to_the_reference(tmp_path: Path, kind: Type, shape: tuple[int, ...]) -> None:
    data = rows_of(kind, shape)
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (kind, data)})
    opened = open_checkpoint(path)
    weight = opened.weights["blk.0.ffn_up"]
    assert (weight.dtype, weight.group) == FORMATS[kind.name]
    assert weight.format == f"gguf {kind.name}" and weight.shape == shape
    assert opened.plain == ("output_norm.weight",)
    assert opened.tensor("output_norm.weight").tolist() == list(range(7))
    found = opened.read("blk.0.ffn_up")
    expected = gguf.quants.dequantize(data, kind)
    assert_equal(kind, found.dequantize(), expected, weight.group)
    assert bool(weight.note) == HALVES[kind][1]  # it says where values are not exact


@given(st.sampled_from(list(HALVES)), st.integers(0, 2**32 - 1))
def test_any_bits(tmp_path_factory: pytest.TempPathFactory, kind: Type, seed: int) -> None:
    data = rows_of(kind, (2, 256), seed)
    path = write(tmp_path_factory.mktemp("gguf") / "m.gguf", {"w": (kind, data)})
    found = open_checkpoint(path).read("w")
    assert_equal(kind, found.dequantize(), gguf.quants.dequantize(data, kind), found.group)


@pytest.mark.parametrize("kind", [Type.Q4_1, Type.Q5_1, Type.Q2_K, Type.Q4_K, Type.Q5_K])
def test_a_scale_of_zero_leaves_the_minimum(tmp_path: Path, kind: Type) -> None:
    data = rows_of(kind, (1, 256))
    at = HALVES[kind][0][0]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data.reshape(-1, size)[:, at : at + 2] = 0
    path = write(tmp_path / "m.gguf", {"w": (kind, data)})
    found = open_checkpoint(path).read("w").dequantize()
    np.testing.assert_array_equal(found.numpy(), gguf.quants.dequantize(data, kind))


def test_types_that_are_not_read_are_reported(tmp_path: Path) -> None:
    size = gguf.GGML_QUANT_SIZES[Type.IQ2_XXS][1]
    data = np.zeros((2, size), np.uint8)
    opened = open_checkpoint(write(tmp_path / "m.gguf", {"w": (Type.IQ2_XXS, data)}))
    assert opened.problems == {"w": "blocks of type IQ2_XXS are not read"}


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    data = rows_of(Type.Q4_0, (4, 64))
    data.reshape(-1, 18)[5, :2] = [0, 0x7C]  # infinity, in row 2
    opened = open_checkpoint(write(tmp_path / "m.gguf", {"w": (Type.Q4_0, data)}))
    with pytest.raises(DataError, match="w must have finite scales; in row 2"):
        opened.read("w")


def test_a_truncated_file_names_the_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"first": (Type.Q8_0, rows_of(Type.Q8_0, (64, 64)))})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 1000])
    with pytest.raises(DataError, match=r"first as Q8_0 \[64, 64\] must lie within"):
        open_checkpoint(path)


def test_split_files_are_one_checkpoint(tmp_path: Path) -> None:
    for i in (1, 2):
        part = tmp_path / f"m-0000{i}-of-00002.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_tensor(f"w{i}", rows_of(Type.Q8_0, (2, 64), i), raw_dtype=Type.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert set(open_checkpoint(tmp_path).weights) == {"w1", "w2"}
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(DataError, match=r"one of 2 parts; missing: m-00002-of-00002\.gguf"):
        open_checkpoint(tmp_path)


def header(tensors: int, pairs: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"GGU", "must go on with its mark"),
        (b"GGML" + bytes(60), "must begin with GGUF"),
        (header(0, 2**63), "must go on with a setting's name"),
        (header(2**63, 0), "must go on with a tensor's name"),
        (header(0, 1, struct.pack("<Q", 2**63)), "must go on with a setting's name"),
        # an array said to have 2**60 items
        (header(0, 1, struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**60)), "must go on with k"),
        (header(0, 1, struct.pack("<Q1sIIQ", 1, b"k", 9, 6, 2**60)), "must go on with k"),
        (header(0, 1, struct.pack("<Q1sI", 1, b"k", 99)), "unknown type 99"),
        (header(1, 0, struct.pack("<Q1sI", 1, b"w", 9)), "w must have 1 to 4 axes"),
        (header(1, 0, struct.pack("<Q1sIQIQ", 1, b"w", 1, 8, 999, 0)), "a block type known here"),
        (header(1, 0, struct.pack("<Q1sIQIQ", 1, b"w", 1, 8, 2, 0)), "a multiple of 32"),
        (header(1, 0, struct.pack("<Q1sIQIQ", 1, b"w", 1, 2**62, 0, 0)), "w as F32 .* must lie"),
    ],
)
def test_hostile_headers(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_checkpoint(path)


@given(st.data())
def test_damage_never_gets_past_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, {"w": (Type.Q4_K, rows_of(Type.Q4_K, (2, 256)))})
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 700) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        opened = open_checkpoint(path)
        for name, weight in opened.weights.items():
            if not weight.problem:
                opened.read(name)
    except (DataError, UnsupportedError) as error:
        assert str(error)
