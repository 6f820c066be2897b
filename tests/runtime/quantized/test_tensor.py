"""``QuantizedTensor``: what it means, whatever its parts and however they lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.quantized.drawing import Parts, heavy_tailed, packings, parts
from tilewright import QuantizedTensor
from tilewright.ir.errors import SettingError, UnsupportedError
from tilewright.ir.packing import Packing


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN at the same places."""
    return (
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    )


@given(parts())
def test_dequantise_is_the_definition(given_parts: Parts) -> None:
    got = given_parts.tensor().dequantize()
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), given_parts.values())


@given(parts())
def test_codes_scales_and_zeros_come_back(given_parts: Parts) -> None:
    tensor = given_parts.tensor()
    assert torch.equal(tensor.codes(), given_parts.codes.to(torch.uint8))
    again = QuantizedTensor.from_codes(
        tensor.codes(), tensor.scales, tensor.zeros, **given_parts.options
    )
    assert same_bits(again.dequantize(), tensor.dequantize())
    assert torch.equal(again.scale_blocks, tensor.scale_blocks)


@given(parts(), st.data())
def test_another_layout_is_exact_and_the_way_back_too(
    given_parts: Parts, data: st.DataObject
) -> None:
    tensor = given_parts.tensor()
    group = tensor.group or max(tensor.shape[-1], 1)
    layout = data.draw(packings(bits=tensor.dtype.bits, group=group))
    moved = tensor.with_layout(layout)
    assert moved.layout == layout
    assert torch.equal(moved.codes(), tensor.codes())
    assert same_bits(moved.dequantize(), tensor.dequantize())
    for name, part in moved.with_layout(tensor.layout).parts():
        assert torch.equal(part, getattr(tensor, name)), name


@given(parts())
def test_bytes_are_bits_and_padding(given_parts: Parts) -> None:
    tensor = given_parts.tensor()
    count = math.prod(tensor.shape)
    groups = tensor.scales.numel()
    if not tensor.group:  # one scale in all, repeated for every row
        groups = min(math.prod(tensor.shape[:-2]), groups)
    each = tensor.scale_blocks.element_size()
    if tensor.zero_blocks is not None:
        each += tensor.zero_blocks.element_size()
    order = 0 if tensor.order is None else 8 * tensor.shape[-1]
    ideal = math.ceil(count * tensor.dtype.bits / 8) + groups * each + order
    assert tensor.nbytes == sum(p.numel() * p.element_size() for _, p in tensor.parts())
    assert tensor.padding_bytes == tensor.nbytes - ideal >= 0
    assert (
        f"{tensor.nbytes:,}" in tensor.explain() and f"{tensor.padding_bytes:,}" in tensor.explain()
    )


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (6, 32), (3, 128), (8, 16), (1, 32), (7, 32)])
def test_whole_groups_and_blocks_need_no_padding(bits: int, group: int) -> None:
    tensor = QuantizedTensor.from_float(torch.randn(64, 256), f"u{bits}", group)
    assert tensor.padding_bytes == 0
    assert tensor.bits_per_weight == bits + 24 / group


@pytest.mark.parametrize("dtype", ["u4", "nf4", "f6e2m3"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_groups_along_the_rows_are_those_of_the_transposed(
    dtype: str, lead: tuple[int, ...]
) -> None:
    w = torch.randn(*lead, 50, 40)
    across = QuantizedTensor.from_float(w, dtype, 16, axis=-2)
    along = QuantizedTensor.from_float(w.mT, dtype, 16)
    assert across.shape == tuple(w.shape) and across.axis == -2
    for get in ("codes", "dequantize"):
        assert torch.equal(getattr(across, get)(), getattr(along, get)().mT)
    assert torch.equal(across.scales, along.scales.mT)
    moved = across.with_layout(Packing.fields(across.dtype.bits, 3, 16))
    assert torch.equal(moved.dequantize(), across.dequantize())


def test_axis_0_is_the_last_but_one_of_a_matrix_only() -> None:
    w = torch.randn(8, 6)
    by_row = QuantizedTensor.from_float(w, "u4", 4, axis=0)
    assert torch.equal(by_row.dequantize(), QuantizedTensor.from_float(w.T, "u4", 4).dequantize().T)
    with pytest.raises(SettingError, match="axis=0"):
        QuantizedTensor.from_float(w[None], "u4", 4, axis=0)
    with pytest.raises(SettingError, match="axes"):
        QuantizedTensor.from_float(w[0], "u4", 4)


def test_experts_are_quantised_each_by_itself() -> None:
    w = torch.randn(3, 20, 33)
    all_of_them = QuantizedTensor.from_float(w, "i5", 8)
    for at in range(3):
        alone = QuantizedTensor.from_float(w[at], "i5", 8)
        assert torch.equal(all_of_them[at].dequantize(), alone.dequantize())
        assert all_of_them[at].shape == (20, 33)
    with pytest.raises(IndexError):
        all_of_them[3]
    with pytest.raises(IndexError, match="leading"):
        all_of_them[0][0]


def test_one_scale_in_all_takes_one() -> None:
    tensor = QuantizedTensor.from_codes(
        torch.randint(0, 16, (5, 7)), torch.tensor([[0.5]]), dtype="u4", group="tensor"
    )
    assert torch.equal(tensor.dequantize(), tensor.codes() * 0.5)
    made = QuantizedTensor.from_float(heavy_tailed(20, 30), "i8", "tensor")
    assert made.group == 0 and made.scales.unique().numel() == 1


def test_other_result_dtypes_are_rounded_once() -> None:
    tensor = QuantizedTensor.from_float(torch.randn(20, 40), "f6e3m2", 16)
    whole = tensor.dequantize()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(tensor.dequantize(dtype), whole.to(dtype))


def test_scales_of_torchs_byte_floats() -> None:
    codes = torch.randint(0, 16, (4, 32))
    for dtype, name in ((torch.float8_e4m3fn, "f8e4m3"), (torch.float8_e8m0fnu, "e8m0")):
        scales = torch.tensor([[0.5], [1.0], [2.0], [16.0]]).to(dtype)
        tensor = QuantizedTensor.from_codes(codes, scales, dtype="f4e2m1", group=32)
        assert tensor.scale_dtype.name == name
        assert torch.equal(tensor.scales, scales.to(torch.float32))
    rounded = QuantizedTensor.from_codes(
        codes, torch.tensor([[0.3]] * 4), dtype="f4e2m1", group=32, scale_dtype="f8e4m3"
    )
    assert torch.equal(rounded.scales, torch.full((4, 1), 0.3125))


def test_a_constant_zero_of_ones_own() -> None:
    codes = torch.tensor([[0, 5, 15]])
    tensor = QuantizedTensor.from_codes(codes, torch.ones(1, 1), dtype="u4", group=3, zero_point=8)
    assert tensor.dequantize().tolist() == [[-8, -3, 7]]
    assert "every zero is 8" in tensor.explain()


def test_a_layout_may_be_asked_for() -> None:
    layout = Packing.fields(3, 8, 24)
    tensor = QuantizedTensor.from_float(torch.randn(10, 48), "u3", 24, layout=layout)
    assert tensor.layout == layout
    with pytest.raises(UnsupportedError, match="group"):
        tensor.with_layout(Packing.fields(3, 8, 12))
    with pytest.raises(UnsupportedError, match="bits"):
        tensor.with_layout(Packing.fields(4, 8, 24))


def test_moving_to_a_device_keeps_everything() -> None:
    tensor = QuantizedTensor.from_float(torch.randn(10, 48), "u3", 24)
    assert torch.equal(tensor.to("cpu").dequantize(), tensor.dequantize())
    assert "u3 [10, 48]" in repr(tensor)
