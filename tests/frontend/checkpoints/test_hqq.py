"""HQQ: equal to (W_q - zero) * scale on the weight seen in groups, as its quantiser states it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.frontend.checkpoints.writers import folder, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError

NAME = "model.layers.0.mlp.down_proj"
FIELDS = {8: (8, 1), 6: (8, 1), 5: (8, 1), 4: (4, 2), 3: (3, 10), 2: (2, 4), 1: (1, 8)}
PACKING = {
    8: "8bit_u8",
    6: "8bit_u8",
    5: "8bit_u8",
    4: "4bit_u8",
    3: "3bit_32",
    2: "2bit_u8",
    1: "1bit_u8",
}


def text(value: str) -> torch.Tensor:
    return torch.tensor([ord(c) for c in value], dtype=torch.uint8)


def pack(seen: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [a, b]: the first slab of rows in the highest bits."""
    width, fields = FIELDS[bits]
    rows = -(-len(seen) // fields) * fields
    filled = torch.zeros(rows, seen.shape[1], dtype=torch.int64)
    filled[: len(seen)] = seen
    step = rows // fields
    total = torch.zeros(step, seen.shape[1], dtype=torch.int64)
    for i in range(fields):
        total = total * 2**width + filled[i * step : (i + 1) * step]
    return total.to(torch.int32 if bits == 3 else torch.uint8)


def layer(
    bits: int, rows: int, length: int, group: int, axis: int, dtype: torch.dtype = torch.float16
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What an HQQLinear's state_dict holds, and the weight it stands for."""
    generator = torch.Generator().manual_seed(bits)
    others = rows * length // group
    seen_as = (others, group) if axis == 1 else (group, others)
    seen = torch.randint(1 << bits, seen_as, generator=generator)
    beside = (others, 1) if axis == 1 else (1, others)
    scale = (torch.rand(beside, generator=generator) + 0.01).to(dtype)
    zero = (torch.rand(beside, generator=generator) * (1 << bits)).to(dtype)
    tensors = {
        "W_q": pack(seen, bits),
        "scale": scale,
        "zero": zero,
        "nbits": torch.tensor(bits, dtype=torch.uint8),
        "axis": torch.tensor(axis, dtype=torch.uint8),
        "group_size": torch.tensor(group % 256, dtype=torch.uint8),  # a byte is too short for 256
        "shape": torch.tensor([rows, length]),
        "packing": text(PACKING[bits]),
        "view_as_float": torch.tensor(0, dtype=torch.uint8),
        "quant_scale": torch.tensor(0, dtype=torch.uint8),
        "quant_zero": torch.tensor(0, dtype=torch.uint8),
        "compute_dtype": text("torch.float16"),
        "stores_quant_config": torch.tensor(1, dtype=torch.uint8),
    }
    value = (seen.float() - zero.float()) * scale.float()
    return under(NAME, tensors), value.reshape(rows, length)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1])
def test_equal_to_the_formula(tmp_path: Path, bits: int, axis: int) -> None:
    tensors, expected = layer(bits, 48, 64, 16, axis)
    opened = open_checkpoint(folder(tmp_path / "m", tensors))
    found = opened.read(NAME)
    assert (found.dtype.name, found.shape, found.group) == (f"u{bits}", (48, 64), 16)
    assert torch.equal(found.dequantize(), expected)
    assert not opened.plain and not opened.problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_dtypes_and_groups(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, expected = layer(4, 8, 512, 256, 1, dtype)
    found = open_checkpoint(folder(tmp_path / "m", tensors)).read(NAME)
    assert found.group == 256 and torch.equal(found.dequantize(), expected)


def test_codes_seen_as_floats(tmp_path: Path) -> None:
    tensors, expected = layer(4, 48, 64, 16, 1)
    tensors[f"{NAME}.W_q"] = tensors[f"{NAME}.W_q"].view(torch.float16)
    found = open_checkpoint(folder(tmp_path / "m", tensors)).read(NAME)
    assert torch.equal(found.dequantize(), expected)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("zero", None, "zero is missing"),
        ("nbits", None, "nbits is missing"),
        ("shape", torch.tensor([48, 63]), r"48 x 63 weights do not make as many"),
        ("shape", torch.tensor([-48, 64]), "a shape"),
        ("nbits", torch.tensor(9, dtype=torch.uint8), "nbits 1 to 8"),
        ("axis", torch.tensor(3, dtype=torch.uint8), "axis 0 or 1"),
        ("packing", text("6bit_u8"), "packing must be one of 8bit_u8, 4bit_u8 for 4 bits"),
        ("packing", text("2bit_u8"), "for 4 bits; it is '2bit_u8'"),
        ("W_q", torch.zeros(95, 16, dtype=torch.uint8), r"W_q must have 1536 bytes as 4bit_u8"),
        ("scale", torch.full((192, 1), float("nan")).half(), "scale must hold finite scales"),
        ("quant_zero", torch.tensor(1, dtype=torch.uint8), "quantised scales and zeros"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, value: torch.Tensor | None, message: str
) -> None:
    tensors: dict[str, torch.Tensor | None] = {**layer(4, 48, 64, 16, 1)[0]}
    tensors[f"{NAME}.{part}"] = value
    kept = {k: v for k, v in tensors.items() if v is not None}
    opened = open_checkpoint(folder(tmp_path / "m", kept))
    with pytest.raises(DataError, match=message):
        opened.read(NAME)
