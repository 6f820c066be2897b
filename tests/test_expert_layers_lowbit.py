"""Layers of experts with quantised weights: both products, what is kept for them, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.expert_lowbit_cases import (
    CASES,
    EXPERTS,
    Case,
    choices,
    even,
    exact,
    layer,
    owners,
)
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime import threads
from tilewright.runtime.experts import by_expert, grouped, packed
from tilewright.runtime.experts.form import ExpertsForm, Product
from tilewright.runtime.experts.plan import plan
from tilewright.runtime.quantized.tensor import QuantizedTensor


@pytest.mark.parametrize("at", [0, 1])
def test_layers_are_as_one_expert_after_the_other(at: int) -> None:
    """The same bits in every call and on any number of threads."""
    form, ids = CASES[at].form(), choices(3, 2, EXPERTS, 0)
    x, weights = torch.randn(3, 64), torch.rand(3, 2)
    got = layer(form, x, ids, weights)
    # a byte of h may be rounded the other way
    bound = 5e-2 if CASES[at].activation == "int8" else 1e-5
    want = by_expert.run(form, x, ids, weights)
    torch.testing.assert_close(got, want, rtol=bound, atol=bound)
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            assert torch.equal(got, layer(form, x, ids, weights))
    finally:
        threads.set_num_threads(None)


def bent(y: torch.Tensor) -> torch.Tensor:
    """A norm that no kernel has."""
    return y / (1 + y.abs().amax(1, keepdim=True))


@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("floats", ["first", "down", "norm"])
def test_layers_half_of_floats_and_with_norms(floats: str, x: torch.dtype) -> None:
    """One product of the two in floats, a function after them, rows of no expert, x in any order:
    as one expert after the other."""
    made = Case("u4", "halves", "float", bias=True).form()
    wide = torch.randn(EXPERTS, 96, 64), torch.randn(EXPERTS, 64, 48)
    first, down = made.first, made.down
    if floats == "first":
        first = (Product(wide[0].to(x) * 0.2, first[0].bias),)
    if floats == "down":
        down = Product(wide[1].to(x) * 0.2, down.bias)
    after = bent if floats == "norm" else None
    form = ExpertsForm(first, down, made.gate, made.columns, after, skip=True)
    given, weights = torch.randn(64, 7).to(x).T, torch.rand(7, 3)
    ids = choices(7, 3, EXPERTS + 2, 3)
    assert grouped.why_not(form, given) == ""
    want = by_expert.run(form, given, ids, weights).float()
    bound = 1e-4 if x == torch.float32 else 2e-2
    got = grouped.run(form, given, ids, weights).float()
    torch.testing.assert_close(got, want, rtol=bound, atol=bound * float(want.abs().max()))


def test_experts_without_rows_are_not_read() -> None:
    """Their codes may be anything, and rows of no expert stay as they are."""
    form = CASES[1].form()
    ids = torch.tensor([[1, 3], [3, 1]])
    want = layer(form, torch.ones(2, 64), ids, torch.ones(2, 2))
    for product in (*form.first, form.down):
        for e in (0, 2, 4):
            product.weight.scale_blocks[e] = float("nan")  # type: ignore[union-attr, index]
    assert torch.equal(want, layer(form, torch.ones(2, 64), ids, torch.ones(2, 2)))


@pytest.mark.parametrize("part", ["words", "scale_blocks", "zero_blocks", "bias"])
def test_what_is_loaded_into_copied_weights_counts(part: str) -> None:
    """Gate and up in turns are copied apart."""
    form, other = CASES[9].form(), CASES[9].form()
    x, ids, weights = torch.randn(3, 64), choices(3, 2, EXPERTS, 0), torch.rand(3, 2)
    before = layer(form, x, ids, weights)
    first = form.first[0]
    there = first.bias if part == "bias" else getattr(first.weight, part)
    there.copy_(there ^ 0x5A5A5A5A if part == "words" else there * 3)
    after = layer(form, x, ids, weights)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, by_expert.run(form, x, ids, weights), rtol=1e-4, atol=1e-4)
    assert torch.equal(before, layer(other, x, ids, weights))


def test_columns_in_another_order() -> None:
    w, x = torch.randn(EXPERTS, 32, 40), even(3, 40)
    plain = QuantizedTensor.from_float(w, "u4", group=8)
    order = torch.randperm(40)
    product = Product(replace(plain, order=order), activation="float")
    made = plan(choices(3, 2, EXPERTS, 0), torch.rand(3, 2), EXPERTS)
    rows = x[made.tokens.long()]
    got = packed.packed_product(product, made, rows)
    want = exact(product, rows, owners(made, 6))
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    other = tuple(replace(plain[e], order=torch.randperm(40)) for e in range(EXPERTS))
    assert "other orders" in packed.applies(Product(other))


def test_what_has_no_kernel_says_why() -> None:
    w = torch.randn(3, 16, 24)
    turned = QuantizedTensor.from_float(w, "u4", group=8, axis=-2)
    assert "along their rows" in packed.applies(Product(turned))
    apart = QuantizedTensor.from_float(torch.randn(3, 2, 12, 24), "u4", group=8)
    assert "12 rows" in packed.applies(Product(apart))
    packed_w = QuantizedTensor.from_float(w, "u4", group=8)
    form = ExpertsForm((Product(packed_w), Product(w)), Product(torch.randn(3, 24, 16)))
    assert "some weights are floats" in packed.applies(form)
    wide = Product(packed_w, torch.randn(3, 16).double())
    assert "float64" in packed.applies(wide)
    made = plan(torch.tensor([[0, 1]]), torch.rand(1, 2), 3)
    with pytest.raises(UnsupportedError, match="float64"):
        packed.packed_product(wide, made, torch.randn(2, 24))
