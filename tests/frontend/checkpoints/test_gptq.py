"""GPTQ: equal to the formula of AutoGPTQ and GPTQModel, scales[g_idx] * (code - zero[g_idx])."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.frontend.checkpoints.writers import folder, gptq_layer, under
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.frontend.checkpoints.bits import unpack_fields
from tilewright.ir.errors import DataError

NAME = "model.layers.0.mlp.down_proj"


def formula(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """codes [N, K]; zeros, scales [N, groups]; index [K]: the group of every column."""
    return scales.float()[:, index] * (codes.float() - zeros.float()[:, index])


def drawn(
    bits: int, rows: int, length: int, groups: int, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    top = 1 << bits
    codes = torch.randint(top, (rows, length), generator=generator)
    zeros = torch.randint(1, top, (rows, groups), generator=generator)
    scales = (torch.rand(rows, groups, generator=generator) + 0.01).half()
    return codes, zeros, scales


@pytest.mark.parametrize("rule", ["v1", "v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_and_rule(tmp_path: Path, bits: int, rule: str) -> None:
    codes, zeros, scales = drawn(bits, 32, 96, 3)
    layer = gptq_layer(codes, zeros, scales, bits, rule)
    layer["g_idx"] = torch.arange(96, dtype=torch.int32) // 32
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer)), zero_rule=rule)
    found = opened.read(NAME)
    assert (found.dtype.name, found.shape, found.group) == (f"u{bits}", (32, 96), 32)
    assert found.order is None  # columns lie by group already
    expected = formula(codes, zeros, scales, torch.arange(96) // 32)
    assert torch.equal(found.dequantize(), expected)


@pytest.mark.parametrize("bits", [3, 4])
def test_columns_in_order_of_activations(tmp_path: Path, bits: int) -> None:
    codes, zeros, scales = drawn(bits, 16, 128, 4)
    index = torch.arange(128)[torch.randperm(128, generator=torch.Generator().manual_seed(1))] // 32
    layer = {**gptq_layer(codes, zeros, scales, bits), "g_idx": index.to(torch.int32)}
    opened = open_checkpoint(folder(tmp_path / "m", under(NAME, layer)), zero_rule="v1")
    found = opened.read(NAME)
    assert found.order is not None
    assert torch.equal(found.dequantize(), formula(codes, zeros, scales, index))


@given(st.data())
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    rows = (
        32
        * data.draw(st.integers(1, 2))
        // (1 if bits == 3 else data.draw(st.sampled_from([1, 4])))
    )
    group = data.draw(st.sampled_from([16, 32, 64]))
    groups = data.draw(st.integers(1, 3))
    length = 32 * -(-group * groups // 32)
    groups = -(-length // group)
    codes, zeros, scales = drawn(bits, rows, length, groups, data.draw(st.integers(0, 99)))
    layer = gptq_layer(codes, zeros, scales, bits)
    with_index = data.draw(st.booleans())
    if with_index:
        layer["g_idx"] = torch.arange(length, dtype=torch.int32) // group
    config = {"quant_method": "gptq", "bits": bits, "group_size": group}
    path = folder(tmp_path_factory.mktemp("gptq") / "m", under(NAME, layer), config)
    found = open_checkpoint(path, zero_rule="v1").read(NAME)
    expected = formula(codes, zeros, scales, torch.arange(length) // group)
    assert torch.equal(found.dequantize(), expected)


def test_one_group_for_a_row(tmp_path: Path) -> None:
    codes, zeros, scales = drawn(4, 8, 64, 1)
    config = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    path = folder(tmp_path / "m", under(NAME, gptq_layer(codes, zeros, scales, 4)), config)
    found = open_checkpoint(path, zero_rule="v1").read(NAME)
    assert found.group == 64
    expected = formula(codes, zeros, scales, torch.zeros(64, dtype=torch.int64))
    assert torch.equal(found.dequantize(), expected)


def test_three_bits_straddle_words_as_autogptq_writes_them() -> None:
    """AutoGPTQ: ten codes, two bits of the next, its third bit first in word 1, ten, one bit, …"""
    codes = [(5 * i + 3) % 8 for i in range(32)]
    first = sum(codes[i] << 3 * i for i in range(10)) | (codes[10] & 3) << 30
    second = codes[10] >> 2 | sum(codes[11 + i] << 3 * i + 1 for i in range(10))
    second |= (codes[21] & 1) << 31
    third = codes[21] >> 1 | sum(codes[22 + i] << 3 * i + 2 for i in range(10))
    words = torch.tensor([[w - (1 << 32) * (w >> 31) for w in (first, second, third)]])
    assert unpack_fields(words.to(torch.int32), 3, 32).tolist() == [codes]


@pytest.mark.parametrize("unset", [0, -1])
def test_an_order_that_is_not_set(tmp_path: Path, unset: int) -> None:
    codes, zeros, scales = drawn(4, 16, 64, 2)
    index = torch.full((64,), unset, dtype=torch.int32)
    layer = {**gptq_layer(codes, zeros, scales, 4), "g_idx": index}
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer)), zero_rule="v1").read(NAME)
    expected = formula(codes, zeros, scales, torch.arange(64) // 32)
    assert torch.equal(found.dequantize(), expected)


def test_equal_zeros_take_no_bytes(tmp_path: Path) -> None:
    codes, _, scales = drawn(4, 16, 64, 2)
    layer = gptq_layer(codes, torch.full((16, 2), 8), scales, 4)
    found = open_checkpoint(folder(tmp_path / "m", under(NAME, layer))).read(NAME)
    assert found.zero_blocks is None and found.zero_point == 8


def broken(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    codes, zeros, scales = drawn(4, 16, 64, 2)
    layer: dict[str, torch.Tensor | None] = {
        **gptq_layer(codes, zeros, scales, 4),
        "g_idx": torch.arange(64, dtype=torch.int32) // 32,
        **changes,
    }
    return under(NAME, {k: v for k, v in layer.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": None}, f"{NAME}.scales is missing"),
        ({"qzeros": None}, f"{NAME}.qzeros is missing"),
        (
            {"scales": torch.ones(2, 15).half()},
            r"scales must be .* \[any, 16\] .*it is F16 \[2, 15\]",
        ),
        ({"qzeros": torch.zeros(3, 2, dtype=torch.int32)}, r"qzeros must be I32 \[2, any\]"),
        ({"qzeros": torch.zeros(2, 3, dtype=torch.int32)}, "no width fits both"),
        ({"qzeros": torch.zeros(2, 2)}, "qzeros must be I32"),
        ({"qweight": torch.zeros(7, 16, dtype=torch.int32)}, "no width fits both"),
        ({"g_idx": torch.arange(64, dtype=torch.int32) // 63}, "must name group 0 32 times"),
        (
            {"g_idx": torch.arange(64, dtype=torch.int32) // 16},
            "groups from 0 to 1; it goes from 0",
        ),
        ({"g_idx": torch.arange(64, dtype=torch.int32) - 1}, "it goes from -1 to 62"),
        (
            {"scales": torch.full((2, 16), float("nan")).half()},
            "scales must hold finite scales; 32",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    opened = open_checkpoint(folder(tmp_path / "m", broken(**changes)), zero_rule="v1")
    assert NAME in opened.weights  # not skipped
    with pytest.raises(DataError, match=message):
        opened.read(NAME)
