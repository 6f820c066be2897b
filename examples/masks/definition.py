"""Attention as its definition says, in float64, with the whole score matrix in memory.

Nothing here is fast or uses Tilewright: it is what every example of this package is held to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Results = tuple[Tensor, Tensor, Tensor]  # the output, the log-sum-exp, the largest score


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score_mod: Function | None = None,
    mask_mod: Function | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    sequence: int | None = None,
) -> Results:
    """Results [B, H, N, E], [B, H, N] twice, of q [B, H, N, D], k [B, K, M, D], v [B, K, M, E].

    With ``sequence`` the batch holds that one sequence, and ``is_causal`` lets its last query see
    its last key (ragged and paged batches) instead of counting from the first ones.
    """
    scores = scaled_scores(q, k, scale)
    batch, heads, rows, columns = scores.shape
    b = torch.arange(batch)[:, None, None, None] + (sequence or 0)
    h = torch.arange(heads)[:, None, None]
    q_idx, kv_idx = torch.arange(rows)[:, None], torch.arange(columns)
    if score_mod is not None:
        scores = score_mod(scores, b, h, q_idx, kv_idx)
    visible = torch.ones_like(scores, dtype=torch.bool)
    if mask_mod is not None:
        visible &= mask_mod(b, h, q_idx, kv_idx)
    if is_causal:
        visible &= kv_idx <= q_idx + (columns - rows if sequence is not None else 0)
    return softmax_sum(scores.masked_fill(~visible, -math.inf), for_all_heads(v, heads))


def scaled_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """q k^T * scale [B, H, N, M] in float64; query heads in a row share a key head."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return q.double() @ for_all_heads(k, q.shape[1]).mT * factor


def for_all_heads(x: Tensor, heads: int) -> Tensor:
    """[B, K, M, D] as [B, heads, M, D] in float64."""
    return x.double().repeat_interleave(heads // x.shape[1], 1)


def softmax_sum(scores: Tensor, v: Tensor) -> Results:
    """softmax(scores) v with the statistics; a row of -inf gives 0, -inf and -inf."""
    if not scores.shape[-1]:
        lowest = scores.new_full(scores.shape[:-1], -math.inf)
        return v.new_zeros((*scores.shape[:-1], v.shape[-1])), lowest, lowest
    lse = scores.logsumexp(-1)
    empty = lse == -math.inf
    weights = (scores - lse.masked_fill(empty, 0.0)[..., None]).exp()
    return weights @ v, lse, scores.amax(-1)


def ragged(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **options: Any
) -> Results:
    """[total, heads, width] tensors, sequence by sequence; statistics [H, total_q]."""
    parts = []
    for s in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[s]), int(cu_seqlens_q[s + 1]))
        keys = slice(int(cu_seqlens_k[s]), int(cu_seqlens_k[s + 1]))
        one = (x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
        parts.append(dense(*one, sequence=s, **options))
    outputs, *statistics = zip(*parts, strict=True)
    output = torch.cat([x[0].transpose(0, 1) for x in outputs])
    lse, largest = (torch.cat([x[0] for x in xs], 1) for xs in statistics)
    return output, lse, largest


def paged(
    q: Tensor, k: Tensor, v: Tensor, *, block_table: Tensor, seqused_k: Tensor, **options: Any
) -> Results:
    """Keys and values [pages, page size, K, width]: key m of sequence b is number m % page size on
    page block_table[b, m // page size]."""
    page, parts = k.shape[1], []
    for b, used in enumerate(seqused_k.tolist()):
        places = [(int(block_table[b, m // page]), m % page) for m in range(used)]
        shape = (0, *k.shape[2:])
        keys, values = (
            torch.stack([x[at] for at in places]) if places else x.new_zeros(shape) for x in (k, v)
        )
        one = (x.transpose(0, 1)[None] for x in (keys, values))
        parts.append(dense(q[b, None], *one, sequence=b, **options))
    output, lse, largest = (torch.cat(xs) for xs in zip(*parts, strict=True))
    return output, lse, largest
