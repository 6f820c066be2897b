"""Tree: drafted tokens that branch; each sees the context, its ancestors and itself.

For speculative verification: one call scores all branches that a draft model proposed, and each
token gets the result that it would get in its branch alone.

Source: Miao et al., "SpecInfer" (2024), section 4.2; Cai et al., "Medusa" (2024), section 3.1.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def tree(context: Tensor, ancestors: Tensor) -> MaskMod:
    """``context``: how many keys come before the drafted ones, an integer tensor of rank 0;
    ``ancestors`` [T, T], bool: whether drafted token j is an ancestor of token i, or i itself."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        drafted = (kv_idx - context).clamp(min=0)
        return (kv_idx < context) | ancestors[q_idx, drafted]

    return mask


def ancestors_of(parents: list[int]) -> Tensor:
    """The ancestors [T, T] of the parents, each before its children; -1 is the context's end."""
    found = torch.eye(len(parents), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            found[token] |= found[parent]
    return found


def parents_of(tokens: int) -> list[int]:
    """Three branches from the context's end, then two from each token."""
    return [-1 if token < 3 else (token - 3) // 2 for token in range(tokens)]


def example(sizes: Sizes) -> Case:
    """As many drafted tokens as ``length``, after a context of half as many."""
    context = torch.tensor(sizes.length // 2)
    ancestors = ancestors_of(parents_of(sizes.length))
    inputs = sizes.inputs(keys=sizes.length + sizes.length // 2)
    names = {"context": context, "ancestors": ancestors}
    return Case(inputs, {"mask_mod": tree(context, ancestors)}, names)


def picture() -> Picture:
    return seen("Tree", tree(torch.tensor(5), ancestors_of(parents_of(15))), 15, 20)


ENTRY = Entry(
    "Tree, of ancestors",
    "tilewright.attention(q, k, v, mask_mod=tree(context, ancestors))",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
