"""gpt-oss' MXFP4 experts and ModelOpt's NVFP4: equal to table[code] * scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.frontend.checkpoints.test_compressed_tensors import E2M1, integers, random
from tests.frontend.checkpoints.writers import folder, nibbles
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError

NAME = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("lead", [(3,), (), (2, 2)])
def test_blocks_of_experts(tmp_path: Path, lead: tuple[int, ...]) -> None:
    """openai/gpt-oss: the low half of a byte comes first, a value is ldexp(table, scale - 127)."""
    codes, powers = integers(0, 16, *lead, 8, 96), integers(100, 140, *lead, 8, 3)
    tensors = {
        f"{NAME}_blocks": nibbles(codes).view(*lead, 8, 3, 16),
        f"{NAME}_scales": powers.to(torch.uint8),
        f"{NAME}_bias": torch.ones(8),
    }
    opened = open_checkpoint(folder(tmp_path / "m", tensors, {"quant_method": "mxfp4"}))
    assert opened.weights[NAME].shape == (*lead, 8, 96)
    assert opened.plain == (f"{NAME}_bias",)
    found = opened.read(NAME)
    expected = torch.ldexp(E2M1[codes], (powers - 127).repeat_interleave(32, -1))
    assert torch.equal(found.dequantize(), expected)


@pytest.mark.parametrize("factor", [2.0**-9, 0.00231])
def test_nvfp4_with_a_second_scale(tmp_path: Path, factor: float) -> None:
    codes = integers(0, 16, 8, 64)
    scales = (100 * random(8, 4)).to(torch.float8_e4m3fn)
    tensors = {
        "l.weight": nibbles(codes),
        "l.weight_scale": scales,
        "l.weight_scale_2": torch.tensor(factor),
    }
    found = open_checkpoint(folder(tmp_path / "m", tensors)).read("l")
    second = torch.tensor(factor)
    expected = E2M1[codes] * (scales.float() * second).repeat_interleave(16, 1)
    error = (found.dequantize().double() - expected.double()).abs()
    allowed = 0.0 if factor == 2.0**-9 else 2.0**-22
    assert bool((error <= allowed * expected.double().abs()).all())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("_scales", None, f"{NAME}_scales is missing; a scale per block"),
        ("_scales", torch.zeros(8, 2, dtype=torch.uint8), r"must be U8 or F8_E8M0 \[8, 3\]"),
        ("_scales", torch.full((8, 3), 255, dtype=torch.uint8), "24 of 24 are 255"),
        ("_blocks", torch.zeros(8, 3, 8, dtype=torch.uint8), "16 bytes for 32 codes"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, value: torch.Tensor | None, message: str
) -> None:
    tensors: dict[str, torch.Tensor | None] = {
        f"{NAME}_blocks": torch.zeros(8, 3, 16, dtype=torch.uint8),
        f"{NAME}_scales": torch.zeros(8, 3, dtype=torch.uint8),
    }
    tensors[NAME + part] = value
    kept = {k: v for k, v in tensors.items() if v is not None}
    opened = open_checkpoint(folder(tmp_path / "m", kept))
    with pytest.raises(DataError, match=message):
        opened.read(NAME)


def test_a_second_scale_of_zero(tmp_path: Path) -> None:
    tensors = {
        "l.weight": torch.zeros(4, 16, dtype=torch.uint8),
        "l.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn),
        "l.weight_scale_2": torch.tensor(0.0),
    }
    opened = open_checkpoint(folder(tmp_path / "m", tensors))
    with pytest.raises(DataError, match=r"weight_scale_2 must be a finite scale other than 0"):
        opened.read("l")
