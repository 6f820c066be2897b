"""Decoding, ragged batches, pages and low-bit caches in Triton's interpreter.
``test_triton_attention.py`` runs this file in its own process, with TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.frontend.attention import varlen
from tilewright.frontend.attention.plans import GATHERED, INTERPRETED
from tilewright.runtime.gpu_parts import InParts
from tilewright.runtime.gpu_targets import using_schedule
from tilewright.runtime.kv_cache import quantise

ERRORS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def attended(inner: int, *tensors: Any, **options: Any) -> Any:
    with using_schedule(16, inner, 4, 2):
        out = tilewright.attention(*tensors, enable_gqa=True, **options)
    assert not INTERPRETED and not GATHERED
    return out


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """[.., H, N, D] with keys [.., K, M, D] in float64; rows that see nothing are 0."""
    groups = q.shape[-3] // k.shape[-3]
    k, v = (x.double().repeat_interleave(groups, -3) for x in (k, v))
    s = q.double() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if seen is not None:
        s = s.masked_fill(~seen, -torch.inf)
    return torch.softmax(s, -1).nan_to_num(0.0) @ v


def causal(queries: int, keys: int) -> torch.Tensor:
    """The last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(got.double(), want, rtol=0, atol=ERRORS[dtype])


@settings(max_examples=8)
@given(
    shape=st.sampled_from([(1, 8, 2, 1), (2, 4, 2, 3), (1, 2, 2, 16), (1, 3, 1, 30)]),
    keys=st.integers(1, 200),
    dtype=st.sampled_from(sorted(ERRORS, key=str)),
    upto=st.booleans(),
)
def test_decoding(
    shape: tuple[int, int, int, int], keys: int, dtype: torch.dtype, upto: bool
) -> None:
    """Few rows, in as many parts as the sizes say; lse of what was put together."""
    b, h, heads, n = shape
    rng = torch.Generator().manual_seed(keys)
    sizes = (b, h, n, 16), (b, heads, keys, 16), (b, heads, keys, 20)
    q, k, v = (torch.randn(x, generator=rng).to(dtype) for x in sizes)
    used = torch.randint(0, keys + 1, (b,), generator=rng)
    out, lse = attended(16, q, k, v, seqused_k=used, is_causal=upto, return_lse=True)
    places = torch.arange(keys)
    seen = (places < used[:, None]).view(b, 1, 1, keys)
    if upto:
        last = torch.arange(n)[:, None] + (used - n).view(b, 1, 1, 1)
        seen = seen & (places <= last)
    close(out, plain(q, k, v, seen), dtype)
    scores = q.double() @ k.double().repeat_interleave(h // heads, 1).transpose(-1, -2) / 4
    want = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse.double(), want, rtol=1e-4, atol=1e-4)


def test_parts_follow_from_sizes_and_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, int] = {}
    choose = InParts._found

    def watched(self: InParts, tensors: tuple[torch.Tensor, ...]) -> Any:
        result = choose(self, tensors)
        found[tensors[1].shape[2]] = result[0]
        return result

    monkeypatch.setattr(InParts, "_found", watched)
    for length in (20, 200, 500):
        q, k, v = (torch.randn(1, h, m, 16) for h, m in ((4, 1), (1, length), (1, length)))
        first = attended(16, q, k, v)
        close(first, plain(q, k, v))
        assert torch.equal(first, attended(16, q, k, v))
    assert found == {20: 1, 200: 5, 500: 16}


@settings(max_examples=5)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=4),
    upto=st.booleans(),
    on_device=st.booleans(),
    wild=st.booleans(),
)
def test_ragged(lengths: list[tuple[int, int]], upto: bool, on_device: bool, wild: bool) -> None:
    """``on_device``: the ranges of rows are made as on a GPU. ``wild``: with offsets that are none,
    which must do no harm."""
    cu_q, cu_k = (
        torch.tensor([0, *(x[at] for x in lengths)], dtype=torch.int32).cumsum(0).int()
        for at in (0, 1)
    )
    q = torch.randn(int(cu_q[-1]), 4, 16)
    k, v = (torch.randn(int(cu_k[-1]), 2, 16) for _ in "kv")
    if not len(k):
        return
    given_ = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    with pytest.MonkeyPatch.context() as patch:
        if on_device:

            def ranges(cu_q: Any, cu_k: Any, q: Any, k: Any, *more: Any) -> Any:
                return varlen.rows_on_device(cu_q, cu_k, len(q), len(k), *more)

            patch.setattr("tilewright.frontend.attention.api.row_ranges", ranges)
            if wild:
                noise = torch.randint(-(2**30), 2**30, cu_k.shape, dtype=torch.int32)
                attended(16, q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=noise, is_causal=upto)
        got = attended(16, q, k, v, is_causal=upto, **given_)
    for s, (n, m) in enumerate(lengths):
        rows, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
        if not n:
            continue
        seen = causal(n, m) if upto else None
        one, keys_, values = (x.transpose(0, 1) for x in (q[rows], k[keys], v[keys]))
        want = plain(one, keys_, values, seen)
        close(got[rows].transpose(0, 1), want)


@settings(max_examples=5)
@given(
    used=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    page=st.sampled_from([3, 16]),
    queries=st.sampled_from([1, 3]),
    upto=st.booleans(),
)
def test_pages(used: list[int], page: int, queries: int, upto: bool) -> None:
    """Memory of pages that nobody wrote holds NaN."""
    batch, entries = len(used), max(1, -(-max(used) // page))
    table = torch.randperm(batch * entries + 2)[: batch * entries].view(batch, entries).int()
    k, v = (torch.full((batch * entries + 2, page, 2, 16), torch.nan) for _ in "kv")
    for b, count in enumerate(used):
        for m in range(count):
            k[table[b, m // page], m % page], v[table[b, m // page], m % page] = torch.randn(
                2, 2, 16
            )
    q, lengths = torch.randn(batch, 4, queries, 16), torch.tensor(used, dtype=torch.int32)
    got = attended(16, q, k, v, block_table=table, seqused_k=lengths, is_causal=upto)
    for b, count in enumerate(used):
        keys, values = (x[table[b].long()].flatten(0, 1)[:count].transpose(0, 1) for x in (k, v))
        seen = causal(queries, count) if upto else None
        close(got[b], plain(q[b], keys, values, seen))


FORMS = [
    ("u8", "u4", {}, 32),
    ("u1", "i7", {}, 32),
    ("u3", "u6", {"group": 16}, 32),
    ("i5", "u2", {"k_by": "channel", "tokens": 32}, 32),
    ("u4", "u4", {"k_by": "channel", "v_by": "channel", "tokens": 64}, 32),
    ("u3", "u5", {}, 16),  # blocks shorter than what a word's planes hold
]


@pytest.mark.parametrize(("k", "v", "options", "inner"), FORMS)
@pytest.mark.parametrize("dtype", sorted(ERRORS, key=str))
def test_low_bit_caches(k: str, v: str, options: Any, inner: int, dtype: torch.dtype) -> None:
    """With few rows, and with many; dtypes in turn."""
    for queries, length in ((1, 70), (40, 45)):
        cache = tilewright.KVCache(1, 2, 20, value_dim=16, k=k, v=v, **options)
        cache.append(torch.randn(1, 2, length, 20), torch.randn(1, 2, length, 16))
        q = torch.randn(1, 4, queries, 20).to(dtype)
        got = attended(inner, q, cache, is_causal=True)
        keys, values = cache.dequantize()
        close(got, plain(q, keys, values, causal(queries, length)), dtype)


@pytest.mark.parametrize("by", ["token", "channel"])
def test_new_tokens_of_a_cache(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 1, 2, 34, 16)
    caches = [tilewright.KVCache(1, 2, 16, k="u8", v="i4", k_by=by, tokens=32) for _ in range(2)]
    want = caches[0].append(*x).dequantize()
    monkeypatch.setattr(quantise, "_by_torch", None)
    with using_schedule(16, 16, 2, 2):
        caches[1].append(*x)
    for got, exact in zip(caches[1].dequantize(), want, strict=True):
        # numbers between two codes may become either
        assert float((got - exact).abs().max()) < 0.5 and float((got - exact).abs().mean()) < 1e-3


def test_one_side_of_a_cache() -> None:
    """Keys in few bits and values as they are."""
    cache = tilewright.KVCache(1, 2, 16, k="u4", v="u4").append(*torch.randn(2, 1, 2, 50, 16))
    q, v = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 50, 16)
    close(attended(32, q, cache.keys, v), plain(q, cache.dequantize()[0], v))
