"""tilewright.attention with score and mask functions against the oracle and flex_attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import (
    and_masks,
    create_block_mask,
    flex_attention,
    or_masks,
)

import tilewright
from tests.frontend.attention_oracle import assert_close, attend
from tilewright.frontend.attention import plans

Function = Callable[..., Any]
B, H, N, M = 2, 4, 7, 9
SLOPES = torch.tensor([0.5, 0.25, 0.125, 1.0])
DOCUMENT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 3, 3, 3]])
BIAS = torch.sin(torch.arange(H * N * M)).reshape(H, N, M)
RELATIVE = torch.cos(torch.arange(B * (N + M))).reshape(B, N + M)
PREFIX = torch.tensor([3, 5], dtype=torch.int32)
OFFSET = torch.tensor(2)
COUNTS = torch.tensor([5, 2])


def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (kv_idx - q_idx)


def soft_cap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return 3.0 * torch.tanh(score / 3.0)


def learned_bias(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + BIAS[h, q_idx, kv_idx]


def bias_in_steps(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + BIAS[h][q_idx][kv_idx]


def relative(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + RELATIVE[b][q_idx - kv_idx + M - 1]


def relative_from_the_end(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score * RELATIVE[b, q_idx - kv_idx]  # negative indices count from the end


def derived_table(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    powers = torch.exp2(-torch.arange(1, H + 1))
    return score - (powers * SLOPES.flip(0))[h] * torch.abs(q_idx - kv_idx).to(torch.float32)


def of_the_shape(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    middle = RELATIVE.shape[1] // 2
    return score + RELATIVE[b, (q_idx - kv_idx + middle).clamp(0, RELATIVE.size(1) - 1)]


def in_place(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    score += 1.5
    score *= SLOPES[h]
    return score


def chosen(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    near = (q_idx - kv_idx).abs() <= 2
    return torch.where(near, score, torch.minimum(score * 0.5, torch.exp(-score)))


def of_positions_only(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return -(q_idx - kv_idx).square() * 0.1


def of_many_operations(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    x = torch.sigmoid(score) + (1 - score) ** 2 / 4 + 2.0 / (1 + kv_idx) + (q_idx >> 1) % 3
    x = x - torch.clamp(score, min=-0.5) + (5 - q_idx) * 0.01 + (kv_idx & 3) + kv_idx // 2
    x = x + torch.log1p(score.square()) + score.sign() - torch.floor(score) * 0.1 + score % 2
    return torch.maximum(x, score).to(torch.float32) + (h == 1) * 0.5 - math.sqrt(2) * (b << 1)


SCORES = [
    alibi, soft_cap, learned_bias, bias_in_steps, relative, relative_from_the_end, derived_table,
    of_the_shape, in_place, chosen, of_positions_only, of_many_operations,
]  # fmt: skip


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx - kv_idx < 3) & (kv_idx - q_idx <= 1)


def document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENT[b, q_idx] == DOCUMENT[b, kv_idx]


def prefix(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (kv_idx < PREFIX[b]) | (kv_idx <= q_idx)


def offset(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx <= q_idx + OFFSET


def dilated(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return ((q_idx - kv_idx) % 2 == 0) ^ (h > 1)


def blocks(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return ~(q_idx // 4 < kv_idx // 4)


def counts(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return COUNTS[b] > kv_idx


def integers(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx > 3, 1, kv_idx % 2)


def nothing(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx < 0


def everything(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return b.new_ones((), dtype=torch.bool)


def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(h == 0, q_idx == kv_idx, torch.logical_or(h == 2, kv_idx.ge(q_idx)))


MASKS = [
    causal, window, document, prefix, offset, dilated, blocks, counts, integers, nothing,
    everything, by_head, and_masks(causal, document), or_masks(window, and_masks(blocks, causal)),
]  # fmt: skip


def name_of(function: Function | None) -> str:
    return getattr(function, "__name__", "none")


def inputs(
    heads: int = H, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, N, 8), (B, heads, M, 8), (B, heads, M, 6))
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)


def compare(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> None:
    given = tilewright.attention(
        q, k, v, enable_gqa=True, return_lse=True, return_max=True, **options
    )
    assert isinstance(given, tuple)
    assert_close(given, attend(q, k, v, **options), q.dtype)
    alone = tilewright.attention(q, k, v, enable_gqa=True, **options)
    torch.testing.assert_close(alone, given[0])


@pytest.mark.parametrize("score_mod", SCORES, ids=name_of)
def test_score_functions(score_mod: Function) -> None:
    compare(*inputs(), score_mod=score_mod)
    compare(*inputs(heads=2), score_mod=score_mod, scale=0.7, is_causal=True)


@pytest.mark.parametrize("mask_mod", MASKS, ids=name_of)
def test_mask_functions(mask_mod: Function) -> None:
    compare(*inputs(), mask_mod=mask_mod)
    compare(*inputs(heads=1), mask_mod=mask_mod, score_mod=soft_cap, is_causal=True)


@pytest.mark.parametrize("score_mod", [None, *SCORES], ids=name_of)
@pytest.mark.parametrize("mask_mod", [None, document, MASKS[-1]], ids=name_of)
@pytest.mark.filterwarnings("ignore")
def test_the_same_as_flex_attention(score_mod: Function | None, mask_mod: Function | None) -> None:
    q, k, v = inputs(heads=2)
    block = None
    if mask_mod is not None:
        block = create_block_mask(mask_mod, B, H, N, M, device="cpu")
    options: dict[str, Any] = {"score_mod": score_mod, "enable_gqa": True, "scale": 0.4}
    theirs = flex_attention(q, k, v, block_mask=block, return_lse=True, **options)
    ours = tilewright.attention(q, k, v, mask_mod=mask_mod, return_lse=True, **options)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_dtype_and_combination(data: st.DataObject) -> None:
    draw = data.draw
    batch, heads, groups = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    width, value_width = draw(st.sampled_from([1, 5, 8])), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    table = torch.randn((5,), generator=generator)
    limit = draw(st.integers(-3, 9))
    shape = (batch, heads, columns)
    q = torch.randn((batch, heads * groups, rows, width), generator=generator).to(dtype)
    k = torch.randn((*shape, width), generator=generator).to(dtype)
    v = torch.randn((*shape, value_width), generator=generator).to(dtype)

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[(q_idx + h - kv_idx) % 5]

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx < limit) | (table[kv_idx % 5] > 0.5)

    compare(
        q,
        k,
        v,
        score_mod=draw(st.sampled_from([None, score_mod])),
        mask_mod=draw(st.sampled_from([None, mask_mod])),
        is_causal=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 1.0, 0.3])),
    )


def test_rows_without_keys_are_zero_and_minus_infinity() -> None:
    for options in ({"mask_mod": nothing}, {"mask_mod": nothing, "score_mod": alibi}):
        output, lse, largest = tilewright.attention(
            *inputs(), return_lse=True, return_max=True, **options
        )
        assert (output == 0).all() and (lse == -math.inf).all() and (largest == -math.inf).all()


def test_functions_that_return_python_numbers() -> None:
    q, k, v = inputs()
    ours = tilewright.attention(q, k, v, score_mod=lambda *_: 1.0, mask_mod=lambda *_: True)
    torch.testing.assert_close(ours, v.mean(2, keepdim=True).expand(-1, -1, N, -1))
    assert (tilewright.attention(q, k, v, mask_mod=lambda *_: False) == 0).all()  # type: ignore


def test_keys_and_values_of_batch_one_are_shared() -> None:
    q, k, v = inputs()
    compare(q, k[:1], v[:1], mask_mod=document)


def test_strides_do_not_matter() -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs())
    compare(q, k, v[..., ::2], score_mod=alibi)


def test_one_trace_for_all_lengths_and_batches() -> None:
    plans.TRACES.clear()
    for batch, rows, columns in ((1, 3, 3), (2, 5, 9), (2, 1, 9)):
        q, k = torch.randn(batch, H, rows, 8), torch.randn(batch, H, columns, 8)
        numbers = torch.arange(columns).expand(batch, -1) // 2
        options = {"mask_mod": same_number(numbers), "score_mod": alibi}
        given = tilewright.attention(q, k, k, **options)
        assert isinstance(given, torch.Tensor)
        assert_close((given,), attend(q, k, k, **options), torch.float32)
    assert plans.TRACES.total() == 1


def same_number(numbers: torch.Tensor) -> Function:
    return lambda b, h, q_idx, kv_idx: numbers[b, q_idx] == numbers[b, kv_idx]


def test_inside_a_compiled_function() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = tilewright.attention(2 * q, k, v, mask_mod=causal, score_mod=alibi)
        assert isinstance(output, torch.Tensor)
        return output + 1

    compiled = tilewright.compile(function)
    with torch.no_grad():
        for x in (inputs(), [y[:, :, :5] for y in inputs()]):
            torch.testing.assert_close(compiled(*x), function(*x))
