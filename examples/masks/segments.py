"""Segments: several caches of keys and values, each with its own scale, merged by log-sum-exp.

Contexts encoded apart (APE) or by several workers at once (Hogwild) are attended to one by one,
each with a query of its own where positions differ, and joined as if their keys stood in a row.
APE also weighs a context's log-sum-exp by a factor.

Source: Yang et al., "APE: Adaptive Parallel Encoding" (2025), section 4; Rodionov et al., "Hogwild!
Inference" (2025), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import tilewright
from examples.masks import definition
from examples.masks.definition import Results
from examples.masks.drawing import Picture
from examples.masks.entry import Case, Entry, Sizes, attention

Segment = tuple[Tensor, Tensor, Tensor]  # q [B, H, N, D], k [B, K, M, D], v [B, K, M, E]


def attention_over_segments(
    segments: Sequence[Segment], scales: Sequence[float], factors: Tensor, **options: Any
) -> Results:
    """The output [B, H, N, E], log-sum-exp and maximum [B, H, N] over all keys of all segments.

    ``scales``: what each segment's scores are multiplied by (1 / sqrt(D) over its temperature);
    ``factors`` [segments], above 0: what its log-sum-exp is multiplied by, 1 where it just counts.
    ``options`` are those of tilewright.attention; indices of keys begin at 0 in each segment.
    """
    parts, largest = [], []
    for segment, scale, factor in zip(segments, scales, factors, strict=True):
        output, lse, most = attention(*segment, scale=scale, **options)
        parts.append((output, lse * factor))
        largest.append(most)
    merged, lse = tilewright.merge_attention(*parts)
    return merged, lse, torch.stack(largest).amax(0)


def reference(
    segments: Sequence[Segment], scales: Sequence[float], factors: Tensor, **options: Any
) -> Results:
    """The definition: one softmax over the weighted segments' scores, in float64."""
    parts = [
        definition.dense(*segment, scale=scale, **options)
        for segment, scale in zip(segments, scales, strict=True)
    ]
    outputs, lses, largest = (torch.stack(xs) for xs in zip(*parts, strict=True))
    weighted = lses * factors.double().view(-1, 1, 1, 1)
    lse = weighted.logsumexp(0)
    shares = (weighted - lse.masked_fill(lse == -torch.inf, 0.0)).exp()
    return (shares[..., None] * outputs).sum(0), lse, largest.amax(0)


def example(sizes: Sizes) -> Case:
    """Two contexts at a lower temperature, then the tokens since; the second may be empty."""
    length, plain = sizes.length, sizes.width**-0.5
    segments = []
    for number, keys in enumerate((length, length // 2, 1 + length // 4)):
        q, k, v = sizes.inputs(max(1, length // 4), keys)
        segments.append((q.roll(number, -1), k, v))  # in place of another rotation
    scales, factors = [plain / 0.8, plain / 0.8, plain], torch.tensor([0.9, 0.9, 1.0])
    names = {"segments": segments, "scales": scales, "factors": factors}
    return Case([], names, names, attention_over_segments, reference)


def picture() -> Picture:
    """A colour for each segment, paler where the log-sum-exp counts less."""
    keys = (8, 6, 4)
    shade = torch.cat([torch.full((m,), f) for m, f in zip(keys, (0.7, 0.7, 1.0), strict=True)])
    group = torch.repeat_interleave(torch.arange(3), torch.tensor(keys))
    rows = 5
    return Picture(
        "Segments", shade.expand(rows, -1), group.expand(rows, -1), columns="keys of three segments"
    )


ENTRY = Entry(
    "Key/value segments",
    "attention_over_segments(segments, scales, factors)",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
