"""Calls of low-bit products: several at once, kept between calls, with nothing to multiply."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from tilewright.ir.errors import BindError, TilewrightError, UnsupportedError
from tilewright.ir.parser import parse
from tilewright.runtime.backends import kernel_target
from tilewright.runtime.lowbit import gated_kernel, linear_kernel, linears_kernel, why_not_bytes
from tilewright.runtime.program import Program
from tilewright.runtime.quantized.tensor import QuantizedTensor

K = 100


def weight(rows: int, dtype: str = "u4", group: int = 32, **more: Any) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(rows)
    return QuantizedTensor.from_float(
        torch.randn(rows, K, generator=generator), dtype, group, **more
    )


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_several_at_once_give_the_bits_of_each(activation: str, rows: int) -> None:
    x = torch.randn(rows, K)
    weights = [weight(80), weight(33, "u6"), weight(7, "f4e2m1"), weight(200, "i3")]
    biases = [torch.randn(80), None, torch.randn(7).bfloat16(), None]
    found = linears_kernel(x, weights, biases, activation)
    for y, w, bias in zip(found, weights, biases, strict=True):
        assert torch.equal(y, linear_kernel(x, w, bias, activation))


def test_other_groups_are_products_of_their_own() -> None:
    x = torch.randn(2, K)
    weights = [weight(40), weight(24, group=50)]
    for y, w in zip(linears_kernel(x, weights, (), "int8"), weights, strict=True):
        assert torch.equal(y, linear_kernel(x, w, None, "int8"))


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("dtypes", [("u4", "u4"), ("u5", "f4e2m1"), ("i8", "u2")], ids=str)
def test_gate_and_up(activation: str, dtypes: tuple[str, str]) -> None:
    x = torch.randn(3, K)
    gate, up = (weight(50, dtype) for dtype in dtypes)
    bias = torch.randn(50)
    y = gated_kernel(x, gate, up, (bias, None), activation)
    left = linear_kernel(x, gate, bias, activation, epilogue="silu")
    torch.testing.assert_close(y, left * linear_kernel(x, up, None, activation))


def test_weights_of_one_kernel_must_go_together() -> None:
    other = QuantizedTensor.from_float(torch.randn(50, K + 1), "u4", 32)
    with pytest.raises(BindError, match="one number of columns"):
        gated_kernel(torch.randn(2, K), weight(50), other)


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6), (2, 5, 0), (0, 0, 0)], ids=str)
def test_nothing_to_multiply(shape: tuple[int, int, int]) -> None:
    rows, columns, length = shape
    w = QuantizedTensor.from_codes(
        torch.zeros(columns, length, dtype=torch.uint8),
        torch.ones(columns, -(-length // 4)),
        dtype="u4",
        group=4,
    )
    bias = torch.arange(columns).float()
    y = linear_kernel(torch.ones(rows, length), w, bias, "int8", epilogue="relu")
    expected = bias if not length else torch.zeros(columns)
    assert torch.equal(y, expected.expand(rows, columns))


def test_a_bias_may_change_between_calls() -> None:
    x, w, bias = torch.randn(1, K), weight(33), torch.zeros(33)  # 33 fills no whole block
    before = linear_kernel(x, w, bias)
    bias += 1
    torch.testing.assert_close(linear_kernel(x, w, bias), before + 1)


def test_weights_are_not_kept_alive() -> None:
    x, bias = torch.randn(1, K), torch.randn(48)
    first, second = weight(48), weight(48, "u3")
    linear_kernel(x, first, bias)
    gated_kernel(x, first, second)
    linears_kernel(x, [first, second], [bias, None], "int8")
    alive = weakref.ref(first), weakref.ref(second)
    del first, second
    gc.collect()
    assert alive[0]() is None and alive[1]() is None


def test_refusals_say_what_is_missing() -> None:
    with pytest.raises(UnsupportedError, match="float64"):
        linear_kernel(torch.randn(1, K).double(), weight(16))
    nf4 = weight(16, "nf4").dtype
    assert "nf4" in why_not_bytes(nf4, False, 32)
    assert not why_not_bytes(weight(16).dtype, True, 32)


NARROW = """graph linear<M, K, B, S, G>(%x: tensor<M x K x f32>, %words: tensor<B x S x i32>,
                                       %scales: tensor<B x G x f32>) {
  %w = tensor.dequantize %words, %scales {packing = "quads(4) lanes LANES group 32",
                                          dtype = u4, length = size(K)}
  %y = tensor.contract %x, %w {equation = "mk,nk->mn"}
  return %y
}"""


@pytest.mark.parametrize("more", [(-1, 0), (0, -1), (0, 1), (-99, 0)], ids=str)
def test_words_and_scales_of_other_widths_are_refused(more: tuple[int, int]) -> None:
    """Or the kernel would read past their ends: 64 codes in 2 groups on every lane."""
    lanes = kernel_target().lanes
    program = Program(parse(NARROW.replace("LANES", str(lanes))))
    x = torch.randn(1, 64)
    words, scales = 8 * lanes, 2 * lanes
    good = torch.zeros(1, words, dtype=torch.int32), torch.ones(1, scales)
    assert program(x, *good)[0].shape == (1, lanes)
    other = torch.zeros(1, max(0, words + more[0]), dtype=torch.int32)
    with pytest.raises(TilewrightError):
        program(x, other, torch.ones(1, scales + more[1]))
