"""AWQ: equal to AutoAWQ's (code - zero) * scale after its order of columns is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.frontend.checkpoints.writers import awq_layer, folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.errors import DataError

NAME = "model.layers.0.mlp.gate_proj"
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


def drawn(rows: int, length: int, group: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(16, (rows, length), generator=generator)
    zeros = torch.randint(16, (rows, length // group), generator=generator)
    scales = (torch.rand(rows, length // group, generator=generator) + 0.01).half()
    return codes, zeros, scales


@pytest.mark.parametrize(("rows", "length", "group"), [(8, 32, 32), (48, 128, 64), (64, 96, 96)])
@pytest.mark.parametrize("config", [CONFIG, None])
def test_equal_to_the_formula(
    tmp_path: Path, rows: int, length: int, group: int, config: dict[str, object] | None
) -> None:
    codes, zeros, scales = drawn(rows, length, group)
    path = folder(tmp_path / "m", under(NAME, awq_layer(codes, zeros, scales)), config)
    opened = open_checkpoint(path)
    assert opened.weights[NAME].format == "awq"
    found = opened.read(NAME)
    wide = (v.float().repeat_interleave(group, 1) for v in (zeros, scales))
    zero, scale = wide
    assert torch.equal(found.dequantize(), (codes - zero) * scale)
    half = (codes - zero).half() * scale.half()  # as the reference computes it
    assert torch.equal(found.dequantize(torch.float16), half)


def test_gptq_and_awq_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    codes, zeros, scales = drawn(32, 32, 32)
    tensors = under("a", awq_layer(codes, zeros, scales))
    tensors |= under("g", gptq_layer(codes, zeros, scales, 4, "v2"))
    opened = open_checkpoint(folder(tmp_path / "m", tensors, CONFIG), zero_rule="v2")
    assert {n: w.format for n, w in opened.weights.items()} == {"a": "awq", "g": "gptq"}
    assert torch.equal(opened.read("a").dequantize(), opened.read("g").dequantize())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("qzeros", None, f"{NAME}.qzeros is missing"),
        ("qzeros", torch.zeros(1, 3, dtype=torch.int32), r"qzeros must be I32 \[1, 4\]"),
        ("scales", torch.full((1, 32), float("inf")).half(), "scales must hold finite scales"),
        ("scales", torch.ones(5, 32).half(), r"qzeros must be I32 \[5, 4\]"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, value: torch.Tensor | None, message: str
) -> None:
    layer = awq_layer(*drawn(32, 32, 32))
    layer = {k: v for k, v in {**layer, part: value}.items() if v is not None}
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer), CONFIG))
    with pytest.raises(DataError, match=message):
        opened.read(NAME)


def test_another_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    layer = under(NAME, awq_layer(*drawn(32, 32, 32)))
    opened = open_checkpoint(folder(tmp_path / "m", layer, {**CONFIG, "version": "gemv"}))
    assert "only 'gemm' is read" in opened.problems[NAME]
