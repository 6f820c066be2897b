"""Prefix-LM: all queries see the whole prefix (the prompt); after it, attention is causal.

Each sequence of the batch has a prefix of its own length. The lengths are a tensor, read in every
call: new lengths are not a new function.

Source: Raffel et al., "T5" (2020), section 3.2.1; Dong et al., "UniLM" (2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def prefix_lm(prefix: Tensor) -> MaskMod:
    """``prefix`` [B], integers: the length of each sequence's prefix."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        return (kv_idx < prefix[b]) | (kv_idx <= q_idx)

    return mask


def example(sizes: Sizes) -> Case:
    prefix = torch.arange(1, sizes.batch + 1) * sizes.length // (sizes.batch + 2)
    return Case(sizes.inputs(), {"mask_mod": prefix_lm(prefix)}, {"prefix": prefix})


def picture() -> Picture:
    return seen("Prefix-LM", prefix_lm(torch.tensor([7])), 20)


ENTRY = Entry(
    "Prefix-LM", "tilewright.attention(q, k, v, mask_mod=prefix_lm(prefix))", example, picture
)

if __name__ == "__main__":
    ENTRY.run()
