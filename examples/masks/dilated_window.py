"""Dilated sliding window: every ``dilation``-th of the keys behind a query, ``window`` of them.

The same number of keys as a sliding window reaches ``dilation`` times as far. Models give heads
different dilations; a head with 1 has the plain window.

Source: Beltagy et al., "Longformer" (2020), section 3.1; Child et al., "Sparse Transformer" (2019).
"""

from __future__ import annotations

from typing import Any

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def dilated_window(window: int, dilation: int) -> MaskMod:
    """``window``: how many keys a query sees at most; ``dilation``: from one to the next."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        distance = q_idx - kv_idx
        near = (distance >= 0) & (distance < window * dilation)
        return near & (distance % dilation == 0)

    return mask


def example(sizes: Sizes) -> Case:
    return Case(sizes.inputs(), {"mask_mod": dilated_window(6, 3)})


def picture() -> Picture:
    return seen("Dilated window", dilated_window(4, 3), 20)


ENTRY = Entry(
    "Dilated window",
    "tilewright.attention(q, k, v, mask_mod=dilated_window(6, 3))",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
