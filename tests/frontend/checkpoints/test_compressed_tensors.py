"""compressed-tensors: equal to (value - zero) * scale as its compressors state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frontend.checkpoints.writers import folder, nibbles, packed_rows, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError

NAME = "model.layers.0.mlp.up_proj"
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def config(bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int"}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
    }


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def integers(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(high))


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [32, 96])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers(tmp_path: Path, bits: int, group: int, asymmetric: bool) -> None:
    half = 1 << bits - 1
    values = integers(-half, half, 24, 96)
    scales = random(24, 96 // group).to(torch.bfloat16)
    layer = {
        "weight_packed": packed_rows(values + half, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([24, 96]),
    }
    zeros = torch.zeros(24, 96 // group)
    if asymmetric:
        zeros = integers(-half, half, 24, 96 // group)
        layer["weight_zero_point"] = packed_rows((zeros + half).t(), bits).t()
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer), config(bits)))
    found = opened.read(NAME)
    assert found.dtype.name == (f"i{bits}" if bits > 1 else "u1")
    zero, scale = (v.float().repeat_interleave(group, 1) for v in (zeros, scales))
    assert torch.equal(found.dequantize(), (values - zero) * scale)


def test_one_scale_for_the_tensor_and_zeros_not_packed(tmp_path: Path) -> None:
    values = integers(-8, 8, 16, 32)
    layer = {
        "weight_packed": packed_rows(values + 8, 4),
        "weight_scale": torch.tensor([0.25]),
        "weight_zero_point": torch.tensor([-3], dtype=torch.int8),
        "weight_shape": torch.tensor([16, 32]),
    }
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer), config(4))).read(NAME)
    assert found.group == 0
    assert torch.equal(found.dequantize(), (values + 3) * 0.25)


def test_stacked_experts_and_columns_in_order_of_activations(tmp_path: Path) -> None:
    values = integers(-8, 8, 3, 8, 64)
    scales = random(3, 8, 2)
    index = torch.randperm(64, generator=torch.Generator().manual_seed(5)) // 32
    layer = {
        "weight_packed": torch.stack([packed_rows(v + 8, 4) for v in values]),
        "weight_scale": scales,
        "weight_shape": torch.tensor([3, 8, 64]),
        "weight_g_idx": index.to(torch.int32),
    }
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer), config(4))).read(NAME)
    assert torch.equal(found.dequantize(), values * scales[..., index])


@pytest.mark.parametrize("scale_shape", [(16, 1), (16,), (1,), (16, 2), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_weights_of_a_byte(
    tmp_path: Path, dtype: torch.dtype, scale_shape: tuple[int, ...]
) -> None:
    """One scale per row, tensor, group, and block of 8 x 32."""
    values = (20 * random(16, 64) - 10).to(dtype)
    scales = random(*scale_shape, seed=1)
    layer = {"weight": values, "weight_scale": scales}
    blocks = {"weight_block_size": [8, 32]} if scale_shape == (2, 2) else None
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer), blocks))
    wide = scales.view(-1, 1) if scales.dim() == 1 else scales
    wide = wide.repeat_interleave(16 // wide.shape[0], 0)
    wide = wide.repeat_interleave(64 // wide.shape[1], 1)
    assert torch.equal(opened.read(NAME).dequantize(), values.float() * wide)


def test_blocks_of_128_with_a_short_one_at_the_end(tmp_path: Path) -> None:
    """DeepSeek's FP8: ``weight_scale_inv`` is a factor."""
    values = (4 * random(192, 320) - 2).to(torch.float8_e4m3fn)
    scales = random(2, 3, seed=1)
    layer = {"weight": values, "weight_scale_inv": scales}
    path = folder(tmp_path / "m", under(NAME, layer), {"quant_method": "fp8"})
    rows, columns = torch.arange(192) // 128, torch.arange(320) // 128
    expected = values.float() * scales[rows][:, columns]
    assert torch.equal(open_checkpoint(path).read(NAME).dequantize(), expected)


@pytest.mark.parametrize("scale", [512.0, 371.25])
def test_nvfp4(tmp_path: Path, scale: float) -> None:
    """Equal for a power of two; else both round twice: 2 units in the last place apart at most."""
    codes = integers(0, 16, 8, 64)
    scales = (100 * random(8, 4)).to(torch.float8_e4m3fn)
    layer = {
        "weight_packed": nibbles(codes),
        "weight_scale": scales,
        "weight_global_scale": torch.tensor([scale]),
    }
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer))).read(NAME)
    assert (found.dtype.name, found.group, found.scale_dtype.name) == ("f4e2m1", 16, "f8e4m3")
    expected = E2M1[codes] * (scales.float() / scale).repeat_interleave(16, 1)
    if scale == 512.0:
        assert torch.equal(found.dequantize(), expected)
    else:
        error = (found.dequantize().double() - expected.double()).abs()
        assert bool((error <= 2 * 2.0**-23 * expected.double().abs()).all())


def test_mxfp4(tmp_path: Path) -> None:
    codes, powers = integers(0, 16, 8, 64), integers(0, 255, 8, 2)
    layer = {"weight_packed": nibbles(codes), "weight_scale": powers.to(torch.uint8)}
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer))).read(NAME)
    assert (found.group, found.scale_dtype.name) == (32, "e8m0")
    exact = E2M1[codes].double() * torch.exp2(powers.double() - 127).repeat_interleave(32, 1)
    assert torch.equal(found.dequantize(), exact.float())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight_shape", None, "weight_shape is missing; the shape unpacked"),
        ("weight_shape", torch.tensor([24, 0]), r"must say \[24, K\]; it says \(24, 0\)"),
        ("weight_shape", torch.tensor([25, 96]), r"must say \[24, K\]; it says \(25, 96\)"),
        ("weight_shape", torch.tensor([24, 5000]), "has 12 words a row; 5000 codes"),
        ("weight_scale", None, "weight_scale is missing"),
        ("weight_scale", torch.ones(24, 5), "has 5 groups; 96 columns do not make as many"),
        ("weight_scale", torch.full((24, 3), float("nan")), "finite scales; 72 of 72"),
        ("weight_zero_point", torch.zeros(2, 3, dtype=torch.int32), r"must be I32 \[3, 3\]"),
        ("weight_g_idx", torch.full((96,), 7), "groups from 0 to 2; it goes from 7"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, value: torch.Tensor | None, message: str
) -> None:
    layer: dict[str, torch.Tensor | None] = {
        "weight_packed": packed_rows(integers(0, 16, 24, 96), 4),
        "weight_scale": torch.ones(24, 3),
        "weight_shape": torch.tensor([24, 96]),
    }
    layer[part] = value
    kept = {k: v for k, v in layer.items() if v is not None}
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, kept), config(4)))
    with pytest.raises(DataError, match=message):
        opened.read(NAME)


def test_fp8_weights_that_are_nan(tmp_path: Path) -> None:
    codes = torch.zeros(4, 32, dtype=torch.uint8)
    codes[1, 7] = 0x7F
    layer = {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": torch.ones(1)}
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer)))
    with pytest.raises(DataError, match=r"finite weights; 1 of 128 are not, the first at \[1, 7\]"):
        opened.read(NAME)
