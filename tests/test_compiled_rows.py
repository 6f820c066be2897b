"""Functions of rows under ``tilewright.compile`` with their kernels, against torch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright
from tilewright.frontend import pointwise_cores
from tilewright.ir.errors import UnsupportedError
from tilewright.runtime import family

Function = Callable[..., Any]
SHAPES = ((1, 70), (5, 64), (33, 100), (3, 17, 96), (130, 1030))


def residual_norm(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x + y
    return x, F.layer_norm(x, (x.shape[-1],), w, w * 0.5)


def written_norm(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    apart = x - x.mean(-1, keepdim=True)
    return apart * torch.rsqrt(apart.pow(2).mean(-1, keepdim=True) + 1e-5) * w + y


def leaky(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    positive = x > y
    return torch.where(positive, x, 0.1 * x) * w, positive


def turned(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return (x.transpose(0, -1) * 2 + y.transpose(0, -1)).sigmoid()


FUNCTIONS: dict[str, Function] = {
    "residual and norm": residual_norm,
    "norm written out": written_norm,
    "rms_norm": lambda x, w, y: F.rms_norm(x, (x.shape[-1],), w),
    "softmax": lambda x, w, y: torch.softmax(x * 0.7 + w, -1),
    "logsumexp": lambda x, w, y: x - torch.logsumexp(x, -1, keepdim=True),
    "gate": lambda x, w, y: F.silu(x) * y,
    "conditions": leaky,
    "turned": turned,
}


def agrees(function: Function, *given: Tensor, kernels: int = 1) -> None:
    """Within a few roundings of torch in float64; the results lie in memory as torch's do."""
    compiled = tilewright.compile(function)
    for _ in range(2):
        got = compiled(*given)
    plain = function(*given)
    exact = function(*(x.double() if x.is_floating_point() else x for x in given))
    results = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, plain, exact)), strict=True)
    for ours, theirs, want in results:
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        scale = 2.0**-7 if theirs.dtype == torch.bfloat16 else 2.0**-17
        torch.testing.assert_close(ours.double(), want.double(), rtol=scale, atol=scale)
    assert [r.status for r in compiled.explain().regions] == ["kernel"] * kernels


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise_cores, "LEAST", 1)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows(name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        torch._dynamo.reset()
        random = torch.Generator().manual_seed(len(shape))
        x, y = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
        w = torch.rand(shape[-1], generator=random).to(dtype)
        if name == "turned" and shape[0] < pointwise_cores.SHORTEST:
            continue
        agrees(FUNCTIONS[name], x, w, y)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_with_given_matrices(rows: int) -> None:
    random = torch.Generator().manual_seed(rows)
    x, u, g = (torch.randn(n, 48, generator=random) / 7 for n in (rows, 30, 30))
    b, labels = torch.randn(30, generator=random), torch.arange(rows) * 7 % 30
    agrees(lambda x, u, b: F.gelu(F.linear(x, u, b), approximate="tanh"), x, u, b)
    agrees(lambda x, u, g: F.silu(x @ g.T) * (x @ u.T), x, u, g)
    agrees(lambda x, u: F.rms_norm(x, (48,), eps=1e-6) @ u.T, x, u, kernels=2)
    agrees(lambda x, u, at: F.cross_entropy(x @ u.T, at, reduction="none"), x, u, labels)


def test_a_form_that_cannot_be_made_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of integers: the answer is the same at every call, and costs nothing then."""
    text = """graph total<N, M>(%x: tensor<N x M x i32>) {
      %y = tensor.reduce %x {axis = 1, kind = "sum"}
      return %y
    }"""
    program = tilewright.Program(tilewright.parse(text))
    tried: list[int] = []
    lowered = family.KernelFamily.variant

    def variant(self: family.KernelFamily, key: family.Key) -> family.Variant:
        tried.append(key[2])
        return lowered(self, key)

    monkeypatch.setattr(family.KernelFamily, "variant", variant)
    for _ in range(3):
        with pytest.raises(UnsupportedError, match="of i32"):
            program(torch.ones(40, 30, dtype=torch.int32))
    assert len(tried) == 1


def test_integers_along_rows_stay_with_torch() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x * (x > 0.5).sum(-1, keepdim=True) + (x > 3).any(-1, keepdim=True)

    compiled, x = tilewright.compile(function), torch.randn(300, 500)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), function(x))
    report = compiled.explain()
    assert all(not region.fallbacks for graph in report.graphs for region in graph.regions)
    assert "sum" in {row.op for graph in report.graphs for row in graph.left}


@pytest.mark.parametrize("shape", [(9, 40), (70, 300)], ids=str)
def test_logsumexp_of_rows_with_infinities(shape: tuple[int, int]) -> None:
    """And with NaN beside them."""
    x = torch.randn(shape)
    x[0, 3] = x[1, -1] = x[2, 0] = x[4, 7] = math.inf
    x[2, 1:] = x[3] = -math.inf
    x[4, 20] = x[5, 1] = math.nan
    want = (x.double() * 2).logsumexp(-1, keepdim=True)
    for function in (lambda x: (x * 2).logsumexp(-1, keepdim=True), written_log_sum_exp):
        compiled = tilewright.compile(function)
        torch.testing.assert_close(compiled(x).double(), want, equal_nan=True, rtol=1e-6, atol=1e-5)
        assert [region.status for region in compiled.explain().regions] == ["kernel"]


def written_log_sum_exp(x: Tensor) -> Tensor:
    x = x * 2
    top = x.amax(-1, keepdim=True)
    top = torch.where(top.abs() == math.inf, 0.0, top)
    return (x - top).exp().sum(-1, keepdim=True).log() + top


@pytest.mark.parametrize("columns", [7, 300])
def test_log_sum_exp_of_products_with_infinities(columns: int) -> None:
    """Over a running maximum: what came before an infinite score keeps its finite sum."""
    a, b = torch.randn(40, 16), torch.randn(columns, 16)
    bias = torch.randn(40, columns)
    bias[0, 3] = bias[1, -1] = bias[2, 0] = math.inf
    bias[2, 1:] = bias[3] = -math.inf
    compiled = tilewright.compile(lambda a, b, bias: (a @ b.T + bias).logsumexp(-1))
    want = (a.double() @ b.double().T + bias).logsumexp(-1)
    torch.testing.assert_close(compiled(a, b, bias).double(), want, rtol=1e-5, atol=1e-5)
    assert [region.status for region in compiled.explain().regions] == ["kernel"]


def divergence(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    a, b = x.log_softmax(-1), (y * w).log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def entropy(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return (x.softmax(-1) * x.log_softmax(-1)).sum(-1, keepdim=True)


def residual_after_norm(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return y + F.rms_norm(x, (x.shape[-1],), w) * y.amax(-1, keepdim=True)


def modulated(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],)) * (1 + y[:1]) + y[:1]


def two_ends(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = x * w
    return z.logsumexp(-1), z.var(-1)


def way_out_and_back(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    z = F.layer_norm(x, (x.shape[-1],))
    return z * z.cumsum(-1) + y.softmax(-1)  # the sums so far are torch's, and need z


ALONG = {
    f.__name__: (f, 1) for f in (divergence, entropy, residual_after_norm, modulated, two_ends)
}
ALONG["way_out_and_back"] = way_out_and_back, 2


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("shape", [(1, 70), (33, 100), (3, 17, 96), (64, 64)], ids=str)
def test_all_that_runs_along_rows(name: str, shape: tuple[int, ...]) -> None:
    """One kernel reads what is given once; before, every softmax was one."""
    function, kernels = ALONG[name]
    random = torch.Generator().manual_seed(len(shape))
    x, y = (torch.randn(shape, generator=random) for _ in range(2))
    agrees(function, x, torch.rand(shape[-1], generator=random), y, kernels=kernels)


def test_a_reduced_dimension_is_not_another_ones_columns() -> None:
    """As many rows as columns: what a row's sum is taken from is every row's."""

    def function(x: Tensor) -> Tensor:
        p = x.softmax(-1)
        return p - p.amax(-1) * x.logsumexp(-1)

    agrees(function, torch.randn(64, 64), kernels=2)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_of_given_logits(reduction: str) -> None:
    labels = torch.arange(40) * 7 % 300
    labels[5] = -100
    x = torch.randn(40, 300)
    agrees(lambda x, at: F.cross_entropy(x, at, reduction=reduction), x, labels)
    agrees(lambda x: x.logsumexp(-1), x)
