"""Paged keys and values: pages of a shared pool, found through a table for each sequence.

Key m of sequence b is number m % P of page ``block_table[b, m // P]``. Masks and scores see m, not
the place in memory. ``seqused_k`` says how many keys each sequence has.

Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from examples.masks import definition
from examples.masks.drawing import Picture
from examples.masks.entry import Case, Entry, Sizes

PAGE = 16


def table_for(used: list[int], page: int) -> tuple[Tensor, int]:
    """A block table [B, T] (int32) over pages in a scattered order, and the number of pages."""
    count = sum(-(-n // page) for n in used) + 1  # one page is nobody's
    order = (
        (torch.arange(count) * 7 + 3) % count if math.gcd(7, count) == 1 else torch.arange(count)
    )
    table = torch.zeros(len(used), max(-(-n // page) for n in used), dtype=torch.int32)
    first = 0
    for b, n in enumerate(used):
        pages = -(-n // page)
        table[b, :pages] = order[first : first + pages]
        first += pages
    return table, count


def example(sizes: Sizes) -> Case:
    """Three new tokens (or fewer) of each sequence, over as many keys as ``length`` and fewer."""
    return _case(sizes, [max(1, sizes.length // (b + 1)) for b in range(sizes.batch)])


def without_keys(sizes: Sizes) -> Case:
    """A sequence that has no key yet: zeros."""
    return _case(sizes, [0, *(sizes.length for _ in range(sizes.batch - 1))])


def _case(sizes: Sizes, used: list[int]) -> Case:
    block_table, count = table_for(used, PAGE)
    q = sizes.numbers(sizes.batch, sizes.heads, min(3, sizes.length), sizes.width)
    shape = (count, PAGE, sizes.key_heads, sizes.width)
    k, v = (sizes.numbers(*shape, seed=n) for n in (1, 2))
    names = {"block_table": block_table, "seqused_k": torch.tensor(used, dtype=torch.int32)}
    return Case([q, k, v], {**names, "is_causal": True}, names, define=definition.paged)


def picture() -> Picture:
    """The pool of pages: what each sequence's three queries read, in the sequence's colour."""
    used, page = [10, 7], 4
    table, count = table_for(used, page)
    cells = torch.full((3 * len(used), count * page), math.nan)
    groups = torch.zeros_like(cells)
    for b, n in enumerate(used):
        for i in range(3):
            for m in range(n - 2 + i):
                cells[3 * b + i, int(table[b, m // page]) * page + m % page] = 1.0
        groups[3 * b : 3 * b + 3] = b
    return Picture("Paged keys and values", cells, groups, columns="places in pages of four")


ENTRY = Entry(
    "Paged keys and values",
    """\
tilewright.attention(
    q, k, v, block_table=block_table, seqused_k=seqused_k, is_causal=True
)""",
    example,
    picture,
    (without_keys,),
)

if __name__ == "__main__":
    ENTRY.run()
