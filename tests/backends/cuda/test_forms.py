"""Decoding, ragged batches, pages and low-bit caches as CUDA C++, run by the host's emulation: it
refuses races, memory that nobody wrote and accesses out of bounds."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.frontend.attention.plans import GATHERED, INTERPRETED
from tilewright.gpu import using_backend
from tilewright.runtime.gpu_targets import using_schedule

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink compiles kernels for minutes
BOUND = 3e-2  # of bf16 weights and results about 1


def attended(inner: int, *tensors: Any, **options: Any) -> torch.Tensor:
    with using_backend("cuda-host"), using_schedule(16, inner, 4, 2):
        out: torch.Tensor = tilewright.attention(*tensors, enable_gqa=True, **options)
    assert not INTERPRETED and not GATHERED
    return out


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """[H, N, D] with keys [K, M, D] in float64; rows that see nothing are 0."""
    groups, (n, m) = q.shape[0] // k.shape[0], (q.shape[1], k.shape[1])
    k, v = (x.double().repeat_interleave(groups, 0) for x in (k, v))
    s = q.double() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        s = s.masked_fill(~torch.ones(n, m, dtype=torch.bool).tril(m - n), -torch.inf)
    return torch.softmax(s, -1).nan_to_num(0.0) @ v


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=0, atol=BOUND)


@settings(max_examples=6, phases=QUICK, deadline=None)
@given(
    place=st.sampled_from(
        [
            *("j", "j + 1", "j + 63", "2 * j", "j + i", "j + i + 50"),
            *("j + off[h]", "j - i + 300", "j + off[h] + i"),
        ]
    ),
    known=st.booleans(),
    blocks=st.sampled_from([(64, 64), (64, 48), (64, 96), (128, 128), (64, 32)]),
    groups=st.sampled_from([1, 4]),
    cuts=st.lists(st.integers(1, 290), min_size=1, max_size=4),
)
@example("j + off[h]", True, (64, 64), 4, [100])
@example("2 * j", True, (64, 64), 1, [100])
@example("j + i + 50", True, (64, 64), 1, [100, 105])  # reaches three entries
def test_masks_that_look_up_other_positions(
    place: str, known: bool, blocks: tuple[int, int], groups: int, cuts: list[int]
) -> None:
    """Which blocks are left out follows from tables of every 64 numbers: blocks of other sizes, and
    what is added to their positions, reach more of them. ``known``: beside a constant."""
    length, rows = 300, 40 if groups > 1 else 300
    number, off = torch.zeros(3 * length, dtype=torch.int32), torch.tensor([0, 70, 130, 5])
    number[[2 * cut for cut in cuts]] = 1
    number = number.cumsum(0).int()

    def mask(b, h, i, j):  # type: ignore[no-untyped-def]
        places = {
            "j": j, "j + 1": j + 1, "j + 63": j + 63, "2 * j": 2 * j, "j + i": j + i,
            "j + i + 50": j + i + 50,
            "j + off[h]": j + off[h], "j - i + 300": j - i + 300, "j + off[h] + i": j + off[h] + i,
        }  # fmt: skip
        there = number[places[place]]
        return there == 1 if known else there == number[i]

    q = torch.randn(1, groups, rows, 64).bfloat16()
    k, v = (torch.randn(1, 1, length, 64).bfloat16() for _ in range(2))
    with using_backend("cuda-host"), using_schedule(*blocks, blocks[0] // 16, 2):
        got = tilewright.attention(q, k, v, mask_mod=mask, enable_gqa=True)
    assert isinstance(got, torch.Tensor) and not INTERPRETED
    h, i, j = (torch.arange(n) for n in (groups, rows, length))
    seen = mask(0, h[:, None, None], i[:, None], j[None]).expand(groups, rows, length)
    s = (q[0].double() @ k[0].double().mT / 8).masked_fill(~seen, -torch.inf)
    close(got[0], torch.softmax(s, -1).nan_to_num(0.0) @ v[0].double())


def test_queries_that_several_loops_take() -> None:
    """All heads of a group in one block, whose queries are read in shared memory before the loops:
    a name that only the first loop's body has is no C++."""
    one, off = torch.zeros(2048, dtype=torch.int32), torch.tensor([0, 130, 260, 390])
    one[448:451] = 1
    q = torch.randn(1, 4, 16, 64).bfloat16()
    k, v = (torch.randn(1, 1, 700, 64).bfloat16() for _ in range(2))

    def mask(b, h, i, j):  # type: ignore[no-untyped-def]
        return one[j + off[h]] == 1

    with using_backend("cuda-host"), using_schedule(64, 64, 4, 3, True):
        got = tilewright.attention(q, k, v, mask_mod=mask, enable_gqa=True)
    assert isinstance(got, torch.Tensor) and not INTERPRETED
    seen = (one[torch.arange(700) + off[:, None]] == 1)[:, None]
    s = (q[0].double() @ k[0].double().mT / 8).masked_fill(~seen, -torch.inf)
    close(got[0], torch.softmax(s, -1).nan_to_num(0.0) @ v[0].double())


@settings(max_examples=2, phases=QUICK, deadline=None)
@given(
    used=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    page=st.sampled_from([3, 16]),
    queries=st.sampled_from([1, 3]),
    upto=st.booleans(),
)
def test_pages(used: list[int], page: int, queries: int, upto: bool) -> None:
    """Lines of keys in any order, behind a table; memory of pages that nobody wrote holds NaN."""
    batch, entries = len(used), max(1, -(-max(used) // page))
    table = torch.randperm(batch * entries + 2)[: batch * entries].view(batch, entries).int()
    shape = batch * entries + 2, page, 2, 16
    k, v = (torch.full(shape, torch.nan).bfloat16() for _ in "kv")
    for b, count in enumerate(used):
        for at in range(count):
            place = table[b, at // page], at % page
            k[place], v[place] = torch.randn(2, 2, 16).bfloat16()
    q, lengths = torch.randn(batch, 4, queries, 16).bfloat16(), torch.tensor(used).int()
    got = attended(16, q, k, v, block_table=table, seqused_k=lengths, is_causal=upto)
    for b, count in enumerate(used):
        keys, values = (x[table[b].long()].flatten(0, 1)[:count].transpose(0, 1) for x in (k, v))
        close(got[b], plain(q[b], keys, values, upto))


@settings(max_examples=2, phases=QUICK, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=1, max_size=3),
    upto=st.booleans(),
)
def test_ragged(lengths: list[tuple[int, int]], upto: bool) -> None:
    starts = [torch.tensor([0, *(x[at] for x in lengths)]).cumsum(0).int() for at in (0, 1)]
    cu_q, cu_k = starts
    q = torch.randn(int(cu_q[-1]), 4, 16).bfloat16()
    k, v = (torch.randn(int(cu_k[-1]), 2, 16).bfloat16() for _ in "kv")
    got = attended(16, q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, is_causal=upto)
    for s in range(len(lengths)):
        rows, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
        sides = (x.transpose(0, 1) for x in (q[rows], k[keys], v[keys]))
        close(got[rows].transpose(0, 1), plain(*sides, upto))


CACHES: list[tuple[str, str, dict[str, Any], int]] = [
    ("u8", "u4", {}, 32),
    ("u3", "u6", {"group": 16}, 32),
    ("i5", "u2", {"k_by": "channel", "tokens": 32}, 32),
]


@pytest.mark.parametrize(("k", "v", "options", "inner"), CACHES)
def test_low_bit_caches(k: str, v: str, options: dict[str, Any], inner: int) -> None:
    """Codes that threads unpack together; few rows."""
    cache = tilewright.KVCache(1, 2, 32, value_dim=16, k=k, v=v, **options)
    cache.append(torch.randn(1, 2, 45, 32), torch.randn(1, 2, 45, 16))
    q = torch.randn(1, 4, 2, 32).bfloat16()
    got = attended(inner, q, cache, is_causal=True)
    keys, values = cache.dequantize()
    close(got[0], plain(q[0], keys[0], values[0], True))
