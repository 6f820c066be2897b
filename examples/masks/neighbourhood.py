"""2-D neighbourhood: a pixel sees the square of pixels around it; all squares have one size.

At an edge the square moves inwards instead of being cut, as in NATTEN. Pixels are numbered row by
row. Height and width are tensors, read in every call: images of other sizes are no new function.

Source: Hassani et al., "Neighborhood Attention Transformer" (2023), equation 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def neighbourhood(height: Tensor, width: Tensor, side: int) -> MaskMod:
    """``height``, ``width``: of the image, integer tensors of rank 0; ``side`` of the square: odd.
    An image smaller than that is seen as a whole."""
    half = side // 2

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        # the middle of the square: the pixel itself, but half a square away from every edge
        row = torch.minimum((q_idx // width).clamp(min=half), height - 1 - half)
        column = torch.minimum((q_idx % width).clamp(min=half), width - 1 - half)
        down, right = kv_idx // width - row, kv_idx % width - column
        return (down.abs() <= half) & (right.abs() <= half)

    return mask


def example(sizes: Sizes) -> Case:
    """An image of ``length`` pixels, the last row of which may be shorter."""
    width = max(1, int(sizes.length**0.5))
    height = torch.tensor(-(-sizes.length // width))
    names = {"height": height, "width": torch.tensor(width)}
    return Case(sizes.inputs(), {"mask_mod": neighbourhood(**names, side=5)}, names)


def picture() -> Picture:
    return seen("2-D neighbourhood", neighbourhood(torch.tensor(5), torch.tensor(5), 3), 25)


ENTRY = Entry(
    "2-D neighbourhood",
    "tilewright.attention(q, k, v, mask_mod=neighbourhood(height, width, side=5))",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
