"""Documents: sequences of several lengths, packed into one row; each sees itself only, causally.

``numbers`` says to which document a token belongs. Tokens with a negative number are padding: they
see nothing, nothing sees them, and their results are zeros. Without padding the same batch can be
passed flat, by the documents' offsets (``cu_seqlens_q``, ``cu_seqlens_k``).

Source: Krell et al., "Efficient Sequence Packing without Cross-contamination" (2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks import definition
from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def document(numbers: Tensor) -> MaskMod:
    """``numbers`` [B, L], integers: the document of each token, negative for padding."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        own = numbers[b, q_idx]
        return (own == numbers[b, kv_idx]) & (own >= 0) & (kv_idx <= q_idx)

    return mask


def document_numbers(offsets: Tensor) -> Tensor:
    """0 0 0 1 1 … [L] of offsets [documents + 1], which begin with 0 and end with L."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())


def offsets_of(length: int) -> Tensor:
    """Four documents of growing lengths; some are empty where ``length`` is short."""
    return torch.tensor([0, length // 10, length // 4, length // 2, length])


def example(sizes: Sizes) -> Case:
    """A second sequence with one document less, and padding at its end."""
    numbers = document_numbers(offsets_of(sizes.length)).repeat(sizes.batch, 1)
    numbers[1:] = torch.where(numbers[1:] == 3, -1, numbers[1:] + 5)
    return Case(sizes.inputs(), {"mask_mod": document(numbers)}, {"numbers": numbers})


def flat_example(sizes: Sizes) -> Case:
    """The documents of one sequence as a ragged batch: the same without a function."""
    length, offsets = sizes.length, offsets_of(sizes.length)
    q = sizes.numbers(length, sizes.heads, sizes.width)
    k, v = (sizes.numbers(length, sizes.key_heads, sizes.width, seed=n) for n in (1, 2))
    options = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "is_causal": True}
    return Case([q, k, v], options, define=definition.ragged)


def picture() -> Picture:
    numbers = document_numbers(torch.tensor([0, 4, 11, 17, 20]))
    whole = seen("Documents", document(numbers[None]), 20)
    return Picture(whole.title, whole.cells, numbers[:, None].expand(20, 20))


ENTRY = Entry(
    "Documents",
    "tilewright.attention(q, k, v, mask_mod=document(numbers))",
    example,
    picture,
    (flat_example,),
)

if __name__ == "__main__":
    ENTRY.run()
