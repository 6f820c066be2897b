"""Ragged batches, pages, used lengths and merging against the oracle; offsets that do not fit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tests.frontend.attention_oracle import (
    Expected,
    assert_close,
    attend,
    attend_ragged,
    attend_used,
)
from tilewright.frontend import programs
from tilewright.frontend.attention import plans
from tilewright.ir.errors import BindError, UnsupportedError

ALL: dict[str, Any] = {"enable_gqa": True, "return_lse": True, "return_max": True}
PER_SEQUENCE = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.7, 1.1])


def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + PER_SEQUENCE[b] * (q_idx - kv_idx) + h


def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx + kv_idx + h) % 3 != b


OPTIONS = st.fixed_dictionaries(
    {
        "score_mod": st.sampled_from([None, score_mod]),
        "mask_mod": st.sampled_from([None, mask_mod]),
        "is_causal": st.booleans(),
        "scale": st.sampled_from([None, 0.5]),
    }
)
LENGTHS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=0, max_size=5)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
INTEGERS = st.sampled_from([torch.int32, torch.int64])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(shape)) * 1.7).reshape(shape).to(dtype)


def offsets(lengths: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, options=OPTIONS, dtype=DTYPES, integers=INTEGERS)
def test_ragged(
    lengths: list[tuple[int, int]],
    options: dict[str, Any],
    dtype: torch.dtype,
    integers: torch.dtype,
) -> None:
    rows, keys = [n for n, _ in lengths], [m for _, m in lengths]
    q = random(sum(rows), 4, 8, dtype=dtype)
    k, v = random(sum(keys), 2, 8, dtype=dtype), random(sum(keys), 2, 3, dtype=dtype)
    cu_q, cu_k = offsets(rows, integers), offsets(keys)
    got = tilewright.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options, **ALL)
    if lengths:
        assert_close(got, attend_ragged(q, k, v, cu_q, cu_k, **options), dtype)
    else:
        assert [x.numel() for x in got] == [0, 0, 0]


def test_ragged_layouts_share_one_trace() -> None:
    plans.TRACES.clear()
    for rows in ([3, 4], [1, 1, 9], [0], [12, 0, 2, 2]):
        q, cu = random(sum(rows), 2, 8), offsets(rows)
        tilewright.attention(q, q, q, cu_seqlens_q=cu, cu_seqlens_k=cu, is_causal=True)
    assert plans.TRACES.total() == 1


def test_chunked_prefill_and_decode_in_one_batch() -> None:
    """Sequence 0 decodes one token after 6, sequence 1 goes on with 3 after 2, 2 begins with 4."""
    rows, keys = [1, 3, 4], [7, 5, 4]
    q, k = random(8, 4, 8), random(16, 2, 8)
    cu_q, cu_k = offsets(rows), offsets(keys)
    got = tilewright.attention(q, k, k, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, is_causal=True, **ALL)
    assert_close(got, attend_ragged(q, k, k, cu_q, cu_k, is_causal=True), torch.float32)


def pages(
    used: list[int], page: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pages in a shuffled order with NaN where nothing was written, their table, dense keys and
    values."""
    per = max([-(-n // page) for n in used], default=0) + 1
    count = len(used) * per + 2
    order = torch.randperm(count)[: len(used) * per].reshape(len(used), per)
    keys, values = (torch.full((count, page, 2, w), math.nan, dtype=dtype) for w in (width, 3))
    dense = random(len(used), 2, per * page, width, dtype=dtype)
    dense_values = random(len(used), 2, per * page, 3, dtype=dtype)
    for b, n in enumerate(used):
        for m in range(n):
            keys[order[b, m // page], m % page] = dense[b, :, m]
            values[order[b, m // page], m % page] = dense_values[b, :, m]
    table = order.to(torch.int32)
    for b, n in enumerate(used):
        table[b, -(-n // page) :] = -7  # nobody reads what is behind the last page
    return keys, values, table, dense, dense_values


@settings(max_examples=40, deadline=None)
@given(
    used=st.lists(st.integers(0, 9), min_size=0, max_size=3),
    rows=st.integers(0, 4),
    page=st.integers(1, 4),
    options=OPTIONS,
    dtype=DTYPES,
    integers=INTEGERS,
)
def test_pages(
    used: list[int],
    rows: int,
    page: int,
    options: dict[str, Any],
    dtype: torch.dtype,
    integers: torch.dtype,
) -> None:
    keys, values, table, dense, dense_values = pages(used, page, 8, dtype)
    q, lengths = random(len(used), 4, rows, 8, dtype=dtype), torch.tensor(used, dtype=integers)
    got = tilewright.attention(
        q, keys, values, block_table=table, seqused_k=lengths, **options, **ALL
    )
    same = tilewright.attention(q, dense, dense_values, seqused_k=lengths, **options, **ALL)
    for x, y in zip(got, same, strict=True):
        torch.testing.assert_close(x, y)
    if used:
        assert_close(got, attend_used(q, dense, dense_values, lengths, **options), dtype)


def test_pages_without_a_kernel_are_copied_together(monkeypatch: Any) -> None:
    make = programs.make_program

    def refuse_tables(module: Any, target: Any) -> Any:
        if "block_table" in str(module):
            raise UnsupportedError("no tables today")
        return make(module, target)

    monkeypatch.setattr(programs, "make_program", refuse_tables)
    plans.GATHERED.clear()
    used = torch.tensor([3, 0, 9])
    keys, values, table, dense, dense_values = pages(used.tolist(), 4, 8, torch.float32)
    q = random(3, 4, 2, 8)
    for options in ({}, {"is_causal": True, "score_mod": score_mod}):
        got = tilewright.attention(
            q, keys, values, block_table=table, seqused_k=used, **options, **ALL
        )
        assert_close(got, attend_used(q, dense, dense_values, used, **options), torch.float32)
    assert plans.GATHERED == {"no kernel could be made: no tables today": 2}


def test_pages_that_are_all_full() -> None:
    keys, values = random(5, 4, 2, 8), random(5, 4, 2, 3)
    table = torch.tensor([[4, 0], [1, 3]])
    q = random(2, 2, 3, 8)
    dense = [x[table].flatten(1, 2).transpose(1, 2) for x in (keys, values)]
    got = tilewright.attention(q, keys, values, block_table=table, is_causal=True, **ALL)
    assert_close(got, attend(q, *dense, is_causal=True), torch.float32)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), dtype=DTYPES, ragged=st.booleans())
def test_merging_parts_of_the_keys(cuts: list[int], dtype: torch.dtype, ragged: bool) -> None:
    q, k, v = random(2, 4, 3, 8, dtype=dtype), random(2, 2, 12, 8, dtype=dtype), None
    v = random(2, 2, 12, 5, dtype=dtype)
    ends = [0, *sorted(cuts), 12]
    parts = []
    for a, b in itertools.pairwise(ends):
        seen = {"mask_mod": lambda b, h, q_idx, kv_idx: q_idx + kv_idx > h}
        options: dict[str, Any] = {"enable_gqa": True, "return_lse": True, **seen}
        parts.append(tilewright.attention(q, k[:, :, a:b], v[:, :, a:b], **options))
    if ragged:  # [B, H, N, E] -> [N, H, E] of the first batch
        parts = [(o[0].transpose(0, 1), lse[0]) for o, lse in parts]
    output, lse = tilewright.merge_attention(*parts)
    if not ragged:
        scores = _scores(q, k, ends)
        expected = _expected(scores, v)
        assert_close((output,), expected, dtype)
        torch.testing.assert_close(lse.double(), expected.lse, rtol=1e-3, atol=1e-3)
    else:
        whole = [(o.transpose(0, 1)[None], lse[None]) for o, lse in parts]
        again = tilewright.merge_attention(*whole)
        torch.testing.assert_close(output, again[0][0].transpose(0, 1))
        torch.testing.assert_close(lse, again[1][0])


def _scores(q: torch.Tensor, k: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """Scores with the mask of every part, whose kv_idx counts from the part's beginning."""
    scores = q.double() @ k.double().repeat_interleave(2, 1).mT / math.sqrt(8)
    start = torch.zeros(12, dtype=torch.long)
    for end in ends[1:-1]:
        start[end:] = end
    key = torch.arange(12) - start
    seen = torch.arange(3)[:, None] + key > torch.arange(4)[:, None, None]
    return scores.masked_fill(~seen, -math.inf)


def _expected(scores: torch.Tensor, v: torch.Tensor) -> Expected:
    from tests.frontend.attention_oracle import summarise

    return summarise(scores, v.double().repeat_interleave(2, 1))


def test_merging_nothing_gives_zeros() -> None:
    output, lse = torch.full((1, 2, 3, 4), math.nan), torch.full((1, 2, 3), -math.inf)
    merged, logarithm = tilewright.merge_attention((output, lse), (output, lse))
    assert (merged == 0).all() and (logarithm == -math.inf).all()
    real = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3)
    merged, logarithm = tilewright.merge_attention((output, lse), real)
    assert (merged == 1).all() and (logarithm == 0).all()


def test_parts_that_do_not_fit() -> None:
    o, lse = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3)
    for parts, message in (
        ([], "at least one"),
        ([o], "part 0"),
        ([(o, lse), (o, lse[..., :2])], "part 1"),
        ([(o, lse), (o[:, :1], lse[:, :1])], "part 1 is"),
        ([(o, lse.half())], "lse is"),
    ):
        with pytest.raises(BindError, match=message):
            tilewright.merge_attention(*parts)
    with pytest.raises(UnsupportedError, match="no_grad"):
        tilewright.merge_attention((o.clone().requires_grad_(), lse))


K = random(4, 2, 2, 8)  # four pages of two keys with two heads
DENSE = random(2, 2, 3, 8)
FLAT = random(6, 2, 8)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"cu": [1, 3, 6]}, r"cu_seqlens_q\[0\] is 1"),
    ({"cu": [0, 4, 3, 6]}, r"cu_seqlens_q\[2\] is 3, less than cu_seqlens_q\[1\] = 4"),
    ({"cu": [0, 3, 5]}, r"cu_seqlens_q\[2\] is 5; q has 6 rows"),
    ({"cu": [0, 3, 7]}, r"cu_seqlens_q\[2\] is 7; q has 6 rows"),
    ({"cu": []}, "empty"),
    ({"cu": [0.0, 6.0]}, "int32 or int64, it is torch.float32"),
    ({"cu": [[0, 6]]}, "1 dimensions"),
    ({"cu": [0, 6], "cu_k": [0, 3, 6]}, "1 and 2 sequences"),
    ({"cu": [0, 6], "cu_k": [0, 9]}, r"cu_seqlens_k\[1\] is 9; k has 6 rows"),
    ({"table": [[0, 4], [1, 2]]}, r"block_table\[0, 1\] is 4; there are 4 pages"),
    ({"table": [[0, 3], [-1, 2]]}, r"block_table\[1, 0\] is -1"),
    ({"table": [[0, 1]]}, "1 rows for a batch of 2"),
    ({"table": [0, 1]}, "2 dimensions"),
    ({"table": [[0, 1], [2, 3]], "used": [4, 5]}, r"seqused_k\[1\] is 5; .* \[0, 4\]"),
    ({"table": [[0, 1], [2, 3]], "used": [-1, 2]}, r"seqused_k\[0\] is -1"),
    ({"table": [[0, 1], [9, 3]], "used": [1, 1]}, r"block_table\[1, 0\] is 9"),
    ({"table": [[0, 1], [2, 3]], "used": [1]}, "1 lengths for a batch of 2"),
    ({"used": [1, 4]}, r"seqused_k\[1\] is 4; .* \[0, 3\]"),
    ({"used": [1.0, 4.0]}, "int32 or int64"),
]


def numbers(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values) if values else torch.zeros(0, dtype=torch.int32)


@pytest.mark.parametrize(("given_", "message"), WRONG, ids=str)
def test_offsets_tables_and_lengths_out_of_range(given_: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {}
    q, k = (FLAT, FLAT) if "cu" in given_ else (DENSE, K if "table" in given_ else DENSE)
    if "cu" in given_:
        options["cu_seqlens_q"] = numbers(given_["cu"])
        options["cu_seqlens_k"] = numbers(given_.get("cu_k", given_["cu"]))
    if "table" in given_:
        options["block_table"] = torch.tensor(given_["table"])
    if "used" in given_:
        options["seqused_k"] = torch.tensor(given_["used"])
    with pytest.raises(BindError, match=message):
        tilewright.attention(q, k, k, **options)


def test_entries_behind_the_last_page_may_hold_anything() -> None:
    table, used = torch.tensor([[0, 99], [1, -5]]), torch.tensor([2, 1])
    output = tilewright.attention(DENSE, K, K, block_table=table, seqused_k=used)
    assert isinstance(output, torch.Tensor) and output.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 2, 3, 8), (2, 2, 3, 7), (2, 2, 3, 7)), "same head size"),
        (((2, 2, 3, 8), (2, 2, 3, 8), (2, 2, 4, 8)), "same heads and length"),
        (((2, 2, 3, 8), (3, 2, 3, 8), (3, 2, 3, 8)), "q's batch"),
        (((2, 3, 3, 8), (2, 2, 3, 8), (2, 2, 3, 8)), "no multiple"),
        (((2, 4, 3, 8), (2, 2, 3, 8), (2, 2, 3, 8)), "enable_gqa=True"),
        (((2, 3, 8), (2, 3, 8), (2, 3, 8)), "4 dimensions"),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, message: str) -> None:
    with pytest.raises(BindError, match=message):
        tilewright.attention(*(torch.ones(s) for s in shapes))


def test_other_bad_inputs() -> None:
    x = torch.ones(1, 1, 2, 4)
    with pytest.raises(BindError, match="one dtype"):
        tilewright.attention(x, x.double(), x)
    with pytest.raises(BindError, match="one dtype"):
        tilewright.attention(*[x.long()] * 3)
    with pytest.raises(BindError, match="must be a tensor"):
        tilewright.attention(x, [1], x)  # type: ignore[arg-type]
    with pytest.raises(BindError, match="cu_seqlens_k is missing"):
        tilewright.attention(FLAT, FLAT, FLAT, cu_seqlens_q=torch.tensor([0, 6]))
    with pytest.raises(UnsupportedError, match="cu_seqlens_q together with block_table"):
        cu = torch.tensor([0, 6])
        tilewright.attention(FLAT, K, K, cu_seqlens_q=cu, cu_seqlens_k=cu, block_table=cu[None])
    with pytest.raises(UnsupportedError, match="meta"):
        tilewright.attention(x.to("meta"), x, x)
