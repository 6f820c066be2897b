"""Learnable sinks: one more score for each head that takes attention and gives nothing.

exp(sink) stands in the denominator of the softmax, so that a head can attend to nothing much. It is
a part whose log-sum-exp is the sink and whose output is zero: ``merge_attention`` joins it. Rows
that see no key are zeros, as elsewhere; their log-sum-exp is then the sink, their maximum too.

Source: OpenAI, "gpt-oss" (2025); Xiao et al., "Efficient Streaming Language Models with Attention
Sinks" (2024), section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tilewright
from examples.masks import definition
from examples.masks.causal import causal
from examples.masks.definition import Results
from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, Sizes, attention


def attention_with_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, **options: Any) -> Results:
    """The output [B, H, N, E], log-sum-exp and maximum [B, H, N] of tilewright.attention with its
    ``options``; ``sinks`` [H], floats."""
    output, lse, largest = attention(q, k, v, **options)
    sink = sinks.to(lse.dtype)[:, None].expand(lse.shape)
    merged, lse = tilewright.merge_attention((output, lse), (torch.zeros_like(output), sink))
    return merged, lse, torch.maximum(largest, sink)


def reference(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, **options: Any) -> Results:
    """The definition, as gpt-oss has it: a column of scores that is dropped after the softmax.
    Float64; takes a mask function only."""
    mask_mod = options["mask_mod"]
    scores, values = definition.scaled_scores(q, k), definition.for_all_heads(v, q.shape[1])
    batch, heads, rows, columns = scores.shape
    visible = mask_mod(
        torch.arange(batch)[:, None, None, None],
        torch.arange(heads)[:, None, None],
        torch.arange(rows)[:, None],
        torch.arange(columns),
    )
    scores = scores.masked_fill(~visible, -torch.inf)
    column = sinks.double()[:, None, None].expand(batch, heads, rows, 1)
    extended = torch.cat([scores, column], -1)
    weights = extended.softmax(-1)[..., :-1]
    return weights @ values, extended.logsumexp(-1), extended.amax(-1)


def example(sizes: Sizes) -> Case:
    sinks = torch.linspace(-1.0, 2.0, sizes.heads)
    options = {"mask_mod": causal, "sinks": sinks}
    return Case(sizes.inputs(), options, {"sinks": sinks}, attention_with_sinks, reference)


def picture() -> Picture:
    """The sink as a column of its own colour before the keys."""
    keys = seen("Learnable sinks", causal, 20)
    cells = torch.cat([torch.ones(20, 1), keys.cells], 1)
    groups = torch.zeros_like(cells)
    groups[:, 0] = 1
    return Picture(keys.title, cells, groups, columns="the sink, then keys")


ENTRY = Entry(
    "Learnable sinks",
    "attention_with_sinks(q, k, v, sinks, mask_mod=causal)",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
