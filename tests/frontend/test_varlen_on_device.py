"""Offsets and caches that lie on a device: what is found there is what the CPU finds, and nothing
looks at a number (tensors on ``meta`` have none)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilewright
from tilewright.frontend.attention.varlen import (
    check_table,
    ragged_rows,
    row_ranges,
    rows_on_device,
)
from tilewright.ir.errors import BindError

META = torch.device("meta")


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_ranges_are_those_of_the_cpu(
    lengths: list[tuple[int, int]], causal: bool, dtype: torch.dtype
) -> None:
    cu_q, cu_k = (torch.tensor([0, *(x[at] for x in lengths)]).cumsum(0) for at in (0, 1))
    want = ragged_rows(cu_q.tolist(), cu_k.tolist(), causal, True)
    want["end_key"] = want["end_key"].clamp(max=int(cu_k[-1]))
    got = rows_on_device(cu_q.to(dtype), cu_k, int(cu_q[-1]), int(cu_k[-1]), causal, True)
    assert set(got) == set(want)
    for name, x in want.items():
        assert torch.equal(got[name], x), name


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=5), st.integers(0, 9))
def test_any_offsets_give_ranges_of_keys(numbers: list[int], keys: int) -> None:
    offsets = torch.tensor(numbers, dtype=torch.int32)
    for causal in (False, True):
        found = rows_on_device(offsets, offsets, 7, keys, causal, True)
        for name in ("first_key", "end_key"):
            assert found[name].shape == (7,)
            assert bool(((found[name] >= 0) & (found[name] <= keys)).all())


def test_nothing_is_looked_at() -> None:
    offsets = torch.empty(5, dtype=torch.int32, device=META)
    q, k = (torch.empty(n, 2, 16, device=META) for n in (20, 30))
    found = row_ranges(offsets, offsets.long(), q, k, True, True)
    assert {x.device for x in found.values()} == {META} and len(found) == 4
    mixed = row_ranges(torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32), offsets, q, k, True, False)
    assert {x.device for x in mixed.values()} == {META}
    table = torch.empty(3, 4, dtype=torch.int32, device=META)
    assert check_table(table, None, torch.empty(3, 1, device=META), 9, 2).device == META
    with pytest.raises(BindError, match="block_table has 3 rows"):
        check_table(table, None, torch.empty(2, 1, device=META), 9, 2)
    with pytest.raises(BindError, match="4 and 3 sequences"):
        row_ranges(offsets, offsets[:4], q, k, True, True)
    with pytest.raises(BindError, match=r"must be on the CPU; it is on meta"):
        row_ranges(offsets, offsets, torch.empty(20, 2, 16), k, True, True)


def test_offsets_on_the_cpu_are_checked_whatever_the_queries_are_on() -> None:
    offsets = torch.tensor([0, 12, 20], dtype=torch.int32)
    q, k = (torch.empty(n, 2, 16, device=META) for n in (20, 30))
    with pytest.raises(BindError, match=r"cu_seqlens_k\[2\] is 20; k has 30 rows"):
        row_ranges(offsets, offsets, q, k, True, True)


@pytest.mark.parametrize("options", [{}, {"group": 16}, {"k_by": "channel", "v_by": "channel"}])
@pytest.mark.parametrize(("k", "v"), [("u8", "u4"), ("u3", "i5")])
def test_a_cache_looks_at_no_number_on_a_device(k: str, v: str, options: dict[str, str]) -> None:
    cache = tilewright.KVCache(1, 2, 32, k=k, v=v, device="meta", **options)  # type: ignore[arg-type]
    for count in (1, 40, 3, 130, 1):
        cache.append(*(torch.empty(1, 2, count, 32, device="meta") for _ in "kv"))
    cache.truncate(171)
    assert len(cache) == 171 and cache.keys.words.device == META
    with pytest.raises(BindError, match="k must be on meta, it is on cpu"):
        cache.append(*(torch.zeros(1, 2, 1, 32) for _ in "kv"))
