"""Attention is caught however it is written: one region, nothing of it left with torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tilewright.frontend.compile import CompiledFunction, compile

Function = Callable[..., Any]
Tensor = torch.Tensor

PARTS = [
    "matmul",
    "bmm",
    "einsum",
    "softmax",
    "scaled_dot_product_attention",
    "baddbmm",
    "exp",
    "logsumexp",
    "amax",
    "max",
    "sum",
    "tanh",
    "masked_fill",
    "where",
    "tril",
    "triu",
    "repeat_interleave",
    "expand",
    "iadd",
    "masked_fill_",
    "sigmoid",
]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1)
    return weights @ v


def scaled_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    return torch.matmul(F.softmax(scores, -1), v)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * 0.25
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)


def einsum_without_transposes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[b, n, h, d] in and out."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    return torch.einsum("bhnm,bmhd->bnhd", torch.softmax(scores, -1), v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def through_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    return torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ v


def soft_capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = 30.0 * torch.tanh(q @ k.mT / 30.0)
    return scores.softmax(-1) @ v


def causal_by_tril(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool).tril()
    scores = (q @ k.mT).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ v


def causal_by_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, m = torch.arange(q.size(-2)), torch.arange(k.size(-2))
    scores = torch.where(n[:, None] >= m[None, :], q @ k.mT, -1e9)
    return scores.softmax(-1) @ v


def causal_by_triu_of_inf(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.triu(torch.full((q.size(-2), k.size(-2)), float("-inf")), diagonal=1)
    return (q @ k.mT + bias).softmax(-1) @ v


def mask_like_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores = torch.where(scores > 0, scores, torch.full_like(scores, -10.0))
    return scores.softmax(-1) @ v


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores /= 4
    scores += 0.5
    seen = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool).tril()
    scores.masked_fill_(seen.logical_not(), float("-inf"))
    return scores.softmax(-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = torch.full((q.size(1),), 0.5)
    distance = torch.arange(k.size(-2)) - torch.arange(q.size(-2))[:, None]
    scores = q @ k.mT + slopes[:, None, None] * distance
    return scores.softmax(-1) @ v


def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    away = torch.arange(q.size(-2))[:, None] - torch.arange(k.size(-2))
    scores = (q @ k.mT).masked_fill((away < 0) | (away > 3), float("-inf"))
    return scores.softmax(-1) @ v


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q @ k.mT - 2.0) @ v


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * 0.5) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def sdpa_of_layout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[b, n, h, d] in and out; torch's result lies so that the last view needs no copy."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


PLAIN = [
    explicit, scaled_query, einsum, einsum_without_transposes, by_hand, through_logsumexp,
    soft_capped, causal_by_tril, causal_by_positions, causal_by_triu_of_inf, mask_like_scores,
    in_place, alibi, sliding_window, sigmoid_attention, linear_attention, sdpa, sdpa_causal,
    sdpa_of_layout,
]  # fmt: skip


def inputs(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def assert_one_kernel(function: Function, *tensors: Tensor, tolerance: float = 2e-6) -> Any:
    """Compiled and plain results agree; one region holds all of the attention."""
    compiled = compile(function)
    assert isinstance(compiled, CompiledFunction)
    with torch.no_grad():
        result, reference = compiled(*tensors), function(*tensors)
    pairs = (
        [(result, reference)] if isinstance(result, Tensor) else zip(result, reference, strict=True)
    )
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    report = compiled.explain()
    assert [r.status for r in report.regions] == ["kernel"], str(report)
    left = {row.op for graph in report.graphs for row in graph.left}
    assert not left & set(PARTS), str(report)
    return compiled


@pytest.mark.parametrize("function", PLAIN, ids=lambda f: f.__name__)
def test_four_dimensions(function: Function) -> None:
    assert_one_kernel(function, *inputs((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8)))


@pytest.mark.parametrize(
    "function", [explicit, by_hand, sdpa, sdpa_causal], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
def test_any_rank_and_cross_attention(function: Function, lead: tuple[int, ...]) -> None:
    assert_one_kernel(function, *inputs((*lead, 5, 8), (*lead, 7, 8), (*lead, 7, 6)))


@pytest.mark.parametrize("function", [explicit, sdpa], ids=lambda f: f.__name__)
def test_batches_broadcast(function: Function) -> None:
    assert_one_kernel(function, *inputs((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)))
    assert_one_kernel(function, *inputs((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)))


@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 7), (5, 1), (2, 1, 5, 7), (1, 3, 1, 7), (2, 3, 5, 7), (3, 5, 7)], ids=str
)
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_sdpa_masks(shape: tuple[int, ...], kind: str) -> None:
    mask = torch.rand(shape) > 0.3
    if kind == "additive":
        mask = torch.where(mask, torch.randn(shape), float("-inf"))
    function = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)  # noqa: E731
    assert_one_kernel(function, *inputs((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), mask)


def test_rows_with_everything_masked_are_zero_in_sdpa_and_nan_by_hand() -> None:
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    q, k, v = inputs((2, 5, 8), (2, 7, 8), (2, 7, 8))
    sdpa_masked = lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)  # noqa: E731
    compiled = assert_one_kernel(sdpa_masked, q, k, v, mask)
    with torch.no_grad():
        assert (compiled(q, k, v, mask)[:, 2] == 0).all()
    by_mask = lambda q, k, v, m: (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1) @ v  # noqa: E731
    assert_one_kernel(by_mask, q, k, v, mask)


GROUPED: dict[str, Function] = {
    "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "sdpa causal": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, enable_gqa=True, is_causal=True
    ),
    "sdpa masked": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, v.new_ones(q.size(1), q.size(2), k.size(2)).triu(1) > 0, enable_gqa=True
    ),
    "repeat_interleave": lambda q, k, v: explicit(
        q, *(x.repeat_interleave(q.size(-3) // k.size(-3), -3) for x in (k, v))
    ),
    "repeat_kv": lambda q, k, v: explicit(q, repeat_kv(q, k), repeat_kv(q, v)),
    "repeat_kv sdpa": lambda q, k, v: sdpa(q, repeat_kv(q, k), repeat_kv(q, v)),
}


def repeat_kv(q: Tensor, x: Tensor) -> Tensor:
    b, h, m, d = x.shape
    groups = q.size(1) // h
    return x[:, :, None].expand(b, h, groups, m, d).reshape(b, h * groups, m, d)


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_heads_are_shared_not_repeated(name: str) -> None:
    compiled = assert_one_kernel(GROUPED[name], *inputs((2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)))
    ir = compiled.explain().regions[0].ir
    assert "%k: tensor<N0 x N" in ir and "(2*N" in ir


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "function", [explicit, by_hand, sdpa, sdpa_causal, soft_capped], ids=lambda f: f.__name__
)
def test_sixteen_bits(function: Function, dtype: torch.dtype) -> None:
    tensors = inputs((2, 5, 8), (2, 7, 8), (2, 7, 8), dtype=dtype)
    assert_one_kernel(function, *tensors, tolerance=8 * torch.finfo(dtype).eps)


def test_weights_returned_are_a_second_result() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights.mean(1)

    assert_one_kernel_with_more(function, {"mean"}, outputs=2)


def test_statistics_returned_are_results() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = q @ k.mT
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        return weights @ v / total, (top + total.log())

    assert_one_kernel_with_more(function, {"truediv", "add", "log"}, outputs=3)


def assert_one_kernel_with_more(function: Function, left: set[str], outputs: int) -> None:
    compiled = assert_one_kernel(function, *inputs((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)))
    report = compiled.explain()
    assert {row.op for row in report.graphs[0].left} == left
    assert report.regions[0].ir.rpartition("return ")[2].count("%") == outputs


def test_autocast_is_followed() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (q @ k.mT).softmax(-1) @ v

    assert_one_kernel(function, *inputs((2, 5, 8), (2, 7, 8), (2, 7, 8)), tolerance=5e-2)
