"""Causal, aligned bottom-right: the last query sees the last key, also where lengths differ.

For queries that continue a cache: N new queries after M - N earlier keys. It is FlashAttention's
rule; torch's ``is_causal`` aligns top-left. With more queries than keys, the first see nothing.

Source: FlashAttention 2.1 (2023), its change of causal masks; Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def causal_bottom_right(earlier: Tensor) -> MaskMod:
    """``earlier``: keys less queries, an integer tensor of rank 0. (A Python number would do, but
    each of its values would be a function of its own, compiled anew.)"""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        return kv_idx <= q_idx + earlier

    return mask


def example(sizes: Sizes) -> Case:
    return _case(sizes, sizes.length - sizes.length // 3, sizes.length)


def more_queries_than_keys(sizes: Sizes) -> Case:
    """The first rows see no key: zeros."""
    return _case(sizes, sizes.length, sizes.length // 2)


def _case(sizes: Sizes, rows: int, keys: int) -> Case:
    earlier = torch.tensor(keys - rows)
    options = {"mask_mod": causal_bottom_right(earlier)}
    return Case(sizes.inputs(rows, keys), options, {"earlier": earlier})


def picture() -> Picture:
    return seen("Causal, bottom-right", causal_bottom_right(torch.tensor(12)), 8, 20)


ENTRY = Entry(
    "Causal, aligned bottom-right",
    "tilewright.attention(q, k, v, mask_mod=causal_bottom_right(earlier))",
    example,
    picture,
    (more_queries_than_keys,),
)

if __name__ == "__main__":
    ENTRY.run()
