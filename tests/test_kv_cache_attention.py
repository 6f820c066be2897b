"""tilewright.attention over a KVCache: kernels for every mask, score and length, against float64 on
the dequantised keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tests.cache_programs import tolerance
from tests.frontend.attention_oracle import Expected, attend, attend_used
from tilewright.frontend.attention import api, plans
from tilewright.ir.errors import BindError, UnsupportedError

DOCUMENT = torch.arange(400) // 37
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "window": {"mask_mod": lambda b, h, q, k: (k > q + 100) & (k <= q + 171)},
    "documents": {"mask_mod": lambda b, h, q, k: DOCUMENT[q + 50] == DOCUMENT[k]},
    "few": {"mask_mod": lambda b, h, q, k: (k % 64 == 3) | (k == h)},
    "alibi": {"score_mod": lambda s, b, h, q, k: s - SLOPES[h] * (q - k).abs(), "is_causal": True},
    "soft cap": {"score_mod": lambda s, b, h, q, k: 5.0 * torch.tanh(s / 5.0)},
}
CACHES: list[dict[str, Any]] = [
    {"k": "u8", "v": "u4"},
    {"k": "u4", "v": "u4", "k_by": "channel", "tokens": 32},
    {"k": "i7", "v": "u3", "group": 16},
    {"k": "u1", "v": "i5", "v_by": "channel", "tokens": 64, "scale_dtype": torch.float32},
]
ALL = {"enable_gqa": True, "return_lse": True, "return_max": True}


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """No plan may have ended in the interpreter."""
    plans.forget_plans()
    yield
    for same in plans._plans.values():
        for plan in same:
            assert not isinstance(plan.program, plans.Interpreted), plan.program.reason
            assert len(plan.program.steps) == 1


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def filled(count: int, **options: Any) -> tilewright.KVCache:
    cache = tilewright.KVCache(2, 2, 32, **options)
    return cache.append(random(2, 2, count, 32), random(2, 2, count, 32, seed=1))


def assert_near(got: Any, want: Expected, q: torch.Tensor, cache: tilewright.KVCache) -> None:
    """Results within what rounding of queries and weights allows; nowhere NaN."""
    k, v = cache.dequantize()
    scale = q.float().numpy() / q.shape[-1] ** 0.5
    bound = tolerance(scale, k.numpy(), v.numpy()) + 8 * torch.finfo(q.dtype).eps * (
        float(v.abs().max()) if v.numel() else 0.0
    )
    wanted = (want.output, want.lse, want.largest)
    for x, y in zip(got if isinstance(got, tuple) else (got,), wanted, strict=False):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=bound)


@pytest.mark.parametrize(("mask", "options"), list(zip(MASKS, CACHES * 2, strict=False)), ids=str)
def test_masks_and_scores(options: dict[str, Any], mask: str) -> None:
    cache = filled(203, **options)
    for rows in (1, 3, 20):
        q = random(2, 4, rows, 32)
        got = tilewright.attention(q, cache, **MASKS[mask], **ALL)
        want = attend(q, *cache.dequantize(), **MASKS[mask], bottom_right=True)
        assert_near(got, want, q, cache)


@pytest.mark.parametrize("options", CACHES, ids=lambda o: "-".join(map(str, o.values())))
def test_any_length_appended_token_by_token(options: dict[str, Any]) -> None:
    """One program serves all lengths; each token is seen as soon as it is there."""
    cache = tilewright.KVCache(2, 2, 32, **options)
    q = random(2, 4, 1, 32)
    for length in range(70):
        if length % 9 < 3 or length > 60:
            got = tilewright.attention(q, cache, enable_gqa=True)
            assert_near(got, attend(q, *cache.dequantize()), q, cache)
        cache.append(random(2, 2, 1, 32, seed=length), random(2, 2, 1, 32, seed=-length))
    assert plans.TRACES["attention"] >= 1 and len(plans._plans) == 1


@given(st.integers(0, 90), st.integers(0, 90), st.sampled_from(CACHES), st.sampled_from([1, 5]))
@settings(max_examples=3)
def test_sequences_of_different_lengths(
    first: int, second: int, options: dict[str, Any], rows: int
) -> None:
    cache, used = filled(90, **options), torch.tensor([first, second])
    q = random(2, 4, rows, 32)
    for causal in (False, True):
        got = tilewright.attention(q, cache, seqused_k=used, is_causal=causal, **ALL)
        want = attend_used(q, *cache.dequantize(), used, is_causal=causal)
        assert_near(got, want, q, cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queries_of_sixteen_bits(dtype: torch.dtype) -> None:
    cache = filled(77)
    for rows in (1, 20):
        q = random(2, 2, rows, 32).to(dtype)
        got = tilewright.attention(q, cache)
        assert got.dtype == dtype
        assert_near(got, attend(q, *cache.dequantize()), q, cache)


def test_one_side_may_be_a_tensor() -> None:
    cache = filled(150)
    k, v = cache.dequantize()
    for rows in (1, 2, 20):
        q = random(2, 4, rows, 32)
        for given_k, given_v in ((cache.keys, v), (k, cache.values)):
            got = tilewright.attention(q, given_k, given_v, enable_gqa=True)
            assert_near(got, attend(q, k, v), q, cache)


def test_heads_of_other_widths() -> None:
    """Values wider than keys, widths that fill no vector, many queries of a head."""
    for width, wide, heads in ((10, 33, 3), (72, 8, 16)):
        cache = tilewright.KVCache(1, 1, width, value_dim=wide, k="u5", v="u2")
        cache.append(random(1, 1, 61, width), random(1, 1, 61, wide))
        q = random(1, heads, 1, width)
        got = tilewright.attention(q, cache, enable_gqa=True)
        assert_near(got, attend(q, *cache.dequantize()), q, cache)


def test_appending_compiles_nothing() -> None:
    cache, q = filled(40), random(2, 4, 1, 32)
    tilewright.attention(q, cache, enable_gqa=True)
    (plan,) = (p for same in plans._plans.values() for p in same)
    forms = [len(step.family.forms) for step in plan.program.steps]
    cache.append(random(2, 2, 300, 32), random(2, 2, 300, 32))
    tilewright.attention(q, cache, enable_gqa=True)
    assert [len(step.family.forms) for step in plan.program.steps] == forms


def test_forms_that_were_called_go_straight_to_their_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first: list[object] = []
    whole = api._first_call
    monkeypatch.setattr(api, "_first_call", lambda *facts: first.append(facts) or whole(*facts))
    for options in CACHES:
        cache = filled(40, **options)
        for more in ({}, {"is_causal": True}, {"scale": 0.25}):
            tilewright.attention(random(2, 4, 2, 32), cache, enable_gqa=True, **more)
            count = len(first)
            for rows in (2, 1, 20):
                cache.append(random(2, 2, 3, 32), random(2, 2, 3, 32))
                q = random(2, 4, rows, 32, seed=rows)
                want = attend(q, *cache.dequantize(), **{"bottom_right": True, **more})
                for keys in ((cache,), cache.view()):
                    got = tilewright.attention(q, *keys, enable_gqa=True, **more)
                    assert_near(got, want, q, cache)
            assert len(first) == count
    q = random(2, 4, 2, 32)
    cache = filled(40)
    tilewright.attention(q, cache, enable_gqa=True)
    for change in ({"scale": 1}, {"score_mod": lambda s, b, h, i, j: s}, {"return_max": True}):
        count = len(first)
        tilewright.attention(q, cache, enable_gqa=True, **change)
        assert len(first) == count + 1


def test_what_a_cache_cannot_do_is_said() -> None:
    cache, q = filled(8), random(2, 4, 1, 32)
    tilewright.attention(q, cache, enable_gqa=True)  # known forms are checked as well
    offsets = torch.tensor([0, 2])
    with pytest.raises(BindError, match="leave v out"):
        tilewright.attention(q, cache, cache.values)
    with pytest.raises(BindError, match="v is missing"):
        tilewright.attention(q, cache.keys)
    with pytest.raises(BindError, match=r"k must be cache\.keys"):
        tilewright.attention(q, cache.values, cache.keys)
    with pytest.raises(BindError, match="pass enable_gqa=True"):
        tilewright.attention(q, cache)
    with pytest.raises(UnsupportedError, match="a low-bit cache with cu_seqlens"):
        tilewright.attention(q[0], cache, cu_seqlens_q=offsets, cu_seqlens_k=offsets)
    with pytest.raises(UnsupportedError, match="block_table"):
        tilewright.attention(q, cache, block_table=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(BindError, match="same head size"):
        tilewright.attention(q[..., :16], cache, enable_gqa=True)
    with pytest.raises(BindError, match="q's batch"):
        tilewright.attention(q[:1], cache, enable_gqa=True)
    with pytest.raises(BindError, match="no multiple of 2 key heads"):
        tilewright.attention(q[:, :3], cache, enable_gqa=True)
    with pytest.raises(BindError, match="4 dimensions"):
        tilewright.attention(q[0], cache, enable_gqa=True)
    with pytest.raises(BindError, match="same heads and length"):
        tilewright.attention(q, cache.keys, filled(9).values, enable_gqa=True)
    with pytest.raises(UnsupportedError, match="requires gradients"):
        tilewright.attention(q.clone().requires_grad_(), cache, enable_gqa=True)
    with pytest.raises(UnsupportedError, match="negated"):
        tilewright.attention(torch._neg_view(q), cache, enable_gqa=True)
