"""Layers of experts by grouped kernels: the same as expert after expert, and as near to f64 as
torch."""

from __future__ import annotations

import pytest
import torch

from tilewright.ir.errors import UnsupportedError
from tilewright.passes.to_tile.experts.gate import GateFunction
from tilewright.runtime.experts import by_expert, grouped
from tilewright.runtime.experts.floating import Matrices, grouped_product
from tilewright.runtime.experts.form import ALL, HALVES, PAIRS, ExpertsForm, Gate, Product
from tilewright.runtime.experts.plan import plan

GPT_OSS = Gate("silu", alpha=1.702, limit=7.0, shift=1.0)


def choices(tokens: int, chosen: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids, a token's all different, and weights [tokens, chosen]."""
    made = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, experts, generator=made).topk(chosen).indices
    return ids, torch.rand(tokens, chosen, generator=made)


def layer(
    columns: str, transposed: bool, dtype: torch.dtype, sizes: tuple[int, int, int] = (8, 24, 40)
) -> ExpertsForm:
    """Experts E, I, H with biases."""
    made = torch.Generator().manual_seed(1)
    experts, inner, hidden = sizes
    wide = inner if columns == ALL else 2 * inner

    def product(rows: int, length: int) -> Product:
        weight = torch.randn(experts, rows, length, generator=made) * length**-0.5
        weight = weight.mT.contiguous() if transposed else weight
        bias = torch.randn(experts, rows, generator=made) * 0.1
        return Product(weight.to(dtype), bias.to(dtype), transposed)

    gate = GPT_OSS if columns == PAIRS else Gate("silu")
    return ExpertsForm((product(wide, hidden),), product(hidden, inner), gate, columns)


LAYERS = pytest.mark.parametrize(
    ("columns", "transposed"), [(HALVES, False), (PAIRS, False), (PAIRS, True), (ALL, True)]
)


@pytest.mark.parametrize("tokens", [1, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@LAYERS
def test_the_same_in_every_call_and_as_one_expert_after_the_other(
    columns: str, transposed: bool, dtype: torch.dtype, tokens: int
) -> None:
    form = layer(columns, transposed, dtype)
    x = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    given = choices(tokens, 3, 8)
    assert not grouped.why_not(form, x)
    got = grouped.run(form, x, *given)
    bound = 2e-6 if dtype == torch.float32 else 5e-2  # torch rounds both products to bf16
    torch.testing.assert_close(got, by_expert.run(form, x, *given), rtol=bound, atol=bound)
    assert all(torch.equal(got, grouped.run(form, x, *given)) for _ in range(3))


@pytest.mark.parametrize("tokens", [3, 64])
@LAYERS
def test_bf16_is_as_near_to_f64_as_torch(columns: str, transposed: bool, tokens: int) -> None:
    """Rows between the products are bf16, as models have them; sums are not rounded on the way."""
    sizes = (4, 96, 256)
    form = layer(columns, transposed, torch.bfloat16, sizes)
    first = tuple(map(_wide, form.first))
    exact = ExpertsForm(first, _wide(form.down), form.gate, form.columns)
    x, given = torch.randn(tokens, 256).bfloat16(), choices(tokens, 2, 4)
    want = by_expert.run(exact, x.double(), given[0], given[1].double())
    ours, theirs = (
        (side.run(form, x, *given).double() - want).square().mean().sqrt()
        for side in (grouped, by_expert)
    )
    assert ours <= theirs


def _wide(product: Product) -> Product:
    assert isinstance(product.weight, torch.Tensor) and product.bias is not None
    return Product(product.weight.double(), product.bias.double(), product.transposed)


@pytest.mark.parametrize("transposed", [False, True])
def test_long_rows_of_f32_are_added_up_in_blocks(transposed: bool) -> None:
    """The error is less than half of that of one number after another."""
    tokens, length = 40, 4096
    weight = torch.randn(1, 8, length)
    x, ids = torch.randn(tokens, length), torch.zeros(tokens, 1, dtype=torch.int64)
    made = plan(ids, torch.rand(tokens, 1), 1)
    given = weight.mT.contiguous().mT if transposed else weight
    got = grouped_product(made, x, Matrices((given,)))
    each = x[:, None] * weight[0]
    want, naive = each.double().sum(-1), torch.zeros(tokens, 8)
    for k in range(length):
        naive += each[:, :, k]
    ours, theirs = ((y.double() - want).square().mean().sqrt() for y in (got, naive))
    assert ours < theirs / 2


@pytest.mark.parametrize("held", [1, 8 * 200 * 5])
def test_columns_of_the_second_product_may_come_in_blocks(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any width, with the same bits."""
    form = layer(HALVES, False, torch.float32, (8, 24, 300))
    x, given = torch.randn(5, 300), choices(5, 2, 8)
    whole = grouped.run(form, x, *given)
    monkeypatch.setattr(grouped, "HELD", held)
    blocks = grouped._blocks(form.down, 10)
    assert len(blocks) == (3 if held == 1 else 1)
    assert sum(len(range(300)[block]) for block in blocks) == 300
    assert torch.equal(grouped.run(form, x, *given), whole)


def test_weights_of_any_strides_are_read_in_place() -> None:
    """Parts of larger tensors, in either order, without a copy."""
    store = torch.randn(6, 50, 70)
    rows, columns = store[1:5, 3:43, 5:65], store[1:5, 3:43, 5:65].mT
    x, given = torch.randn(9, 60), choices(9, 2, 4)
    made = plan(*given, 4)
    for weight, y in ((rows, x), (columns, x[:, :40].contiguous())):
        got = grouped_product(made, y, Matrices((weight,)), chosen=True)
        one = grouped_product(made, y, Matrices((weight.contiguous(),)), chosen=True)
        torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-4)
        assert Matrices.of(Product(weight)).weights[0].data_ptr() == weight.data_ptr()


def test_gate_and_up_of_different_kinds() -> None:
    """Two products that no kernel takes together: other layouts, other dtypes, one bias."""
    gate, up, down = (torch.randn(4, *shape) * 0.2 for shape in ((24, 40), (24, 40), (40, 24)))
    x, given = torch.randn(9, 40), choices(9, 2, 4)
    turned = Product(up.mT.contiguous(), transposed=True)
    for other, bound in (
        (turned, 1e-5),
        (Product(up.bfloat16()), 2e-2),
        (Product(up, torch.randn(4, 24)), 1e-5),
    ):
        form = ExpertsForm((Product(gate), other), Product(down))
        assert not grouped.why_not(form, x)
        got, want = grouped.run(form, x, *given), by_expert.run(form, x, *given)
        torch.testing.assert_close(got, want, rtol=bound, atol=bound)


def test_what_has_no_grouped_kernel_says_why() -> None:
    apart = Product(torch.randn(4, 32, 32)[:, :, ::2])
    form = ExpertsForm((apart,), Product(torch.randn(4, 16, 16)))
    assert "side by side" in grouped.why_not(form, torch.randn(2, 16))
    plain = ExpertsForm((Product(torch.randn(4, 32, 16)),), Product(torch.randn(4, 16, 16)))
    assert "float64" in grouped.why_not(plain, torch.randn(2, 16).double())
    elsewhere = Product(torch.empty(4, 16, 16, device="meta"))
    there = ExpertsForm(plain.first, elsewhere)
    assert grouped.why_not(there, torch.randn(2, 16)) == "weights of torch.float32 on meta"
    biased = ExpertsForm(plain.first, Product(torch.randn(4, 16, 16), torch.zeros(4, 16).int()))
    assert grouped.why_not(biased, torch.randn(2, 16)) == "biases of torch.int32"
    with pytest.raises(UnsupportedError, match="'mish'"):
        GateFunction("mish")
