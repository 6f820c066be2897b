"""Functions made of others, in compiled kernels: as near to the exact results as torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tilewright.frontend.compile import compile

UNIT = 2.0**-24
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "log10": torch.log10,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "sign": torch.sign,
    "isinf": lambda x: x.isinf().to(x.dtype),
    "isfinite": lambda x: x.isfinite().to(x.dtype),
}


def numbers() -> Tensor:
    """Of all sizes, near and far from integers, with infinities and NaN: many rows of them."""
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(400, generator=random) * scale for scale in (1, 1e-4, 20, 1e-20)]
    special = torch.tensor([0.0, 1.0, -1.0, -0.5, 0.5, 1.5, torch.inf, -torch.inf, torch.nan])
    row = torch.cat([*parts, special, torch.linspace(-104, 88, 391)])
    return row.expand(72, -1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pointwise_functions_are_exact_to_a_few_units(dtype: torch.dtype) -> None:
    """Of the result, however small; a result in 16 bits to one rounding."""

    def functions(x: Tensor) -> tuple[Tensor, ...]:
        x = -x  # one operation alone would stay with torch
        return tuple(f(x) for f in POINTWISE.values())

    x, compiled = numbers().to(dtype), compile(functions)
    with torch.no_grad():
        results = compiled(x)
        wanted = functions(x.double())
    (graph,) = compiled.explain().graphs
    assert not graph.left and [r.status for r in graph.regions] == ["kernel"]
    bound = 12 * UNIT if dtype == torch.float32 else 1.01 * 2**-8
    for name, ours, exact in zip(POINTWISE, results, wanted, strict=True):
        wide = ours.double()
        apart = (wide - exact).abs()
        near = apart <= bound * exact.abs() + 2.0**-126
        same = wide == exact.to(dtype).double()  # infinities, and what is too large for the dtype
        assert (near | same | (wide.isnan() & exact.isnan())).all(), name


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "var": lambda x: x - x.var(-1, keepdim=True),
    "std": lambda x: x / x.std(-1, unbiased=False, keepdim=True),
    "norm": lambda x: x * x.norm(dim=-1, keepdim=True),
    "largest": lambda x: x / torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1) * 3,
    "any": lambda x: x * (x > 3).any(-1, keepdim=True),
}


@pytest.mark.parametrize("name", ROWS)
def test_functions_of_rows(name: str) -> None:
    x = torch.randn(300, 500, generator=torch.Generator().manual_seed(1))
    x[3], x[4, :7], x[5, 9] = -torch.inf, -torch.inf, torch.inf
    x[6] = 0
    compiled = compile(ROWS[name])
    with torch.no_grad():
        ours, theirs, exact = compiled(x), ROWS[name](x), ROWS[name](x.double())
    assert [r.status for g in compiled.explain().graphs for r in g.regions] == ["kernel"]
    assert torch.equal(ours.isnan(), theirs.isnan())
    held = exact.isfinite()
    assert torch.equal(ours[~held].nan_to_num(0.5), theirs[~held].nan_to_num(0.5))
    torch.testing.assert_close(ours[held].double(), exact[held], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_cross_entropy_of_a_head(reduction: str) -> None:
    """With labels that are passed over, and ones that torch refuses."""

    def loss(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(x @ head.T, labels, reduction=reduction)

    x, head, labels = torch.randn(40, 32), torch.randn(100, 32), torch.randint(0, 100, (40,))
    labels[3:9] = -100
    compiled = compile(loss)
    with torch.no_grad():
        ours, theirs = compiled(x, head, labels), loss(x, head, labels)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for wrong in (100, -1):
            labels[20] = wrong
            with pytest.raises(IndexError, match="out of bounds"):
                compiled(x, head, labels)
    (region,) = [r for g in compiled.explain().graphs for r in g.regions]
    assert region.status == "kernel" and "tensor.contract" in region.ir


def test_a_function_that_writes_its_input_by_position_is_seen_to() -> None:
    def function(x: Tensor) -> Tensor:
        scores = x @ x.mT
        weights = torch.softmax(scores, -1)
        F.relu(x, True)
        return weights @ x

    compiled, x = compile(function), torch.randn(2, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x.clone()), function(x.clone()))


def test_layers_that_add_a_product_to_their_bias() -> None:
    """GPT-2's: ``addmm(bias, x, weight)`` with the weight as [terms, columns]."""
    weight, bias = torch.nn.Parameter(torch.randn(48, 96)), torch.nn.Parameter(torch.randn(96))

    def layer(x: Tensor) -> Tensor:
        return F.gelu(torch.addmm(bias, x.view(-1, 48), weight), approximate="tanh")

    compiled, x = compile(layer), torch.randn(2, 5, 48)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    (region,) = [r for g in compiled.explain().graphs for r in g.regions]
    assert region.status == "kernel" and "tensor.contract" in region.ir
