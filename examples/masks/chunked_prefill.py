"""Chunked prefill mixed with decode: ragged queries, each sequence's after its earlier keys.

One call serves a sequence that decodes one token, one that prefills its next chunk, and a new one.
Rows of all sequences follow each other; ``cu_seqlens_q`` and ``cu_seqlens_k`` say where each
begins, and ``is_causal`` lets the last query of a sequence see its last key.

Source: Agrawal et al., "Sarathi-Serve" (2024), section 4; FlashAttention's varlen interface.
"""

from __future__ import annotations

import math

import torch

from examples.masks import definition
from examples.masks.drawing import Picture
from examples.masks.entry import Case, Entry, Sizes


def batch_of(length: int) -> tuple[list[int], list[int]]:
    """Queries and keys of three sequences: one decodes, one goes on, one begins."""
    chunk = length // 2
    return [1, chunk, length - chunk], [1 + length, chunk + length // 3, length - chunk]


def example(sizes: Sizes) -> Case:
    return _case(sizes, *batch_of(sizes.length))


def fewer_keys_than_queries(sizes: Sizes) -> Case:
    """The first queries see nothing, and neither does a sequence without keys: zeros."""
    length = sizes.length
    return _case(sizes, [length, length // 2, 0], [length // 2, 0, 3])


def _case(sizes: Sizes, rows: list[int], keys: list[int]) -> Case:
    q = sizes.numbers(sum(rows), sizes.heads, sizes.width)
    k, v = (sizes.numbers(sum(keys), sizes.key_heads, sizes.width, seed=n) for n in (1, 2))
    offsets = {"cu_seqlens_q": _offsets(rows), "cu_seqlens_k": _offsets(keys)}
    return Case([q, k, v], {**offsets, "is_causal": True}, offsets, define=definition.ragged)


def _offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def picture() -> Picture:
    """All rows and keys as they lie in memory, a colour for each sequence."""
    rows, keys = [1, 5, 6], [9, 8, 6]
    cells = torch.full((sum(rows), sum(keys)), math.nan)
    groups = torch.zeros_like(cells)
    first_row, first_key = 0, 0
    for number, (n, m) in enumerate(zip(rows, keys, strict=True)):
        for i in range(n):
            cells[first_row + i, first_key : first_key + m - n + i + 1] = 1.0
        groups[first_row : first_row + n] = number
        first_row, first_key = first_row + n, first_key + m
    return Picture("Chunked prefill and decode", cells, groups, columns="keys of all sequences")


ENTRY = Entry(
    "Chunked prefill mixed with decode",
    """\
tilewright.attention(
    q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, is_causal=True
)""",
    example,
    picture,
    (fewer_keys_than_queries,),
)

if __name__ == "__main__":
    ENTRY.run()
