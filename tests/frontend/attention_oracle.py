"""Attention in float64 with the whole score matrix: what every test of it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

Function = Callable[..., Any]
Tensor = torch.Tensor
# dimensions of (b, h, q_idx, kv_idx) that each of the nested vmaps runs over, innermost first
_DIMS = [(None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)]


@dataclass(frozen=True)
class Expected:
    """Results in float64: [B, H, N, E], and [B, H, N] for the statistics."""

    output: Tensor
    lse: Tensor
    largest: Tensor


def on_every_position(function: Function, *positions: Tensor, scores: Tensor | None = None) -> Any:
    """The function's values [B, H, N, M], called as flex_attention calls it: one position each."""
    for dims in _DIMS:
        in_dims = dims if scores is None else (0, *dims)
        function = torch.vmap(function, in_dims=in_dims, out_dims=0)
    with TransformGetItemToIndex():
        return function(*positions) if scores is None else function(scores, *positions)


def attend(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score_mod: Function | None = None,
    mask_mod: Function | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    batch: Tensor | None = None,
    bottom_right: bool = False,
) -> Expected:
    """Dense attention. ``batch`` holds the numbers that the functions get as b."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    rows, columns = torch.arange(q.shape[2]), torch.arange(k.shape[2])
    numbers = torch.arange(q.shape[0]) if batch is None else batch
    positions = (numbers, torch.arange(q.shape[1]), rows, columns)
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if not scores.numel():
        return summarise(scores, v)
    if score_mod is not None:
        scores = on_every_position(score_mod, *positions, scores=scores).double()
    if mask_mod is not None:
        seen = on_every_position(mask_mod, *positions)
        scores = scores.masked_fill(~seen.bool(), -math.inf)
    if is_causal:
        shift = k.shape[2] - q.shape[2] if bottom_right else 0
        scores = scores.masked_fill(columns > rows[:, None] + shift, -math.inf)
    return summarise(scores, v)


def summarise(scores: Tensor, v: Tensor) -> Expected:
    """Softmax and product; rows without a finite score give 0 and -inf."""
    if not scores.shape[-1]:
        scores = scores.new_full((*scores.shape[:-1], 1), -math.inf)
        v = v.new_zeros((*v.shape[:-2], 1, v.shape[-1]))
    largest = scores.amax(-1, keepdim=True)
    top = largest.masked_fill(largest == -math.inf, 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    output = (weights / total.masked_fill(total == 0, 1.0)) @ v
    return Expected(output, (total.log() + top).squeeze(-1), largest.squeeze(-1))


def attend_ragged(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any
) -> Expected:
    """[total, heads, width] tensors, one sequence after the other; statistics [H, total_q]."""
    parts = []
    for s in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
        cut = (q[rows], k[keys], v[keys])
        dense = [x.transpose(0, 1)[None] for x in cut]
        parts.append(attend(*dense, batch=torch.tensor([s]), bottom_right=True, **options))
    output = torch.cat([p.output[0].transpose(0, 1) for p in parts])
    lse, largest = (torch.cat([getattr(p, n)[0] for p in parts], 1) for n in ("lse", "largest"))
    return Expected(output, lse, largest)


def attend_used(q: Tensor, k: Tensor, v: Tensor, used: Tensor, **options: Any) -> Expected:
    """Dense attention over the first ``used[b]`` keys of each sequence."""
    parts = [
        attend(q[b, None], k[b, None, :, :n], v[b, None, :, :n], batch=torch.tensor([b]),
               bottom_right=True, **options)
        for b, n in enumerate(used.tolist())
    ]  # fmt: skip
    return Expected(*(torch.cat([getattr(p, n) for p in parts]) for n in FIELDS))


FIELDS = ("output", "lse", "largest")


def assert_close(given: tuple[Tensor, ...], expected: Expected, dtype: torch.dtype) -> None:
    """Every result within the error that its dtype allows, infinities in the same places."""
    relative = {torch.float32: 2e-5, torch.float64: 1e-12}.get(dtype, 4 * torch.finfo(dtype).eps)
    for x, name in zip(given, FIELDS, strict=False):
        assert x.dtype == (dtype if name == "output" or dtype == torch.float64 else torch.float32)
        assert not x.isnan().any()
        wanted = getattr(expected, name)
        torch.testing.assert_close(x.double(), wanted, rtol=relative, atol=relative)
