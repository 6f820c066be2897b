"""Sliding window: a query sees itself and the ``window - 1`` keys before it.

Keys further back are never read: the time grows with N times window, not with N squared. Stacked
layers still pass information on from further away.

Source: Beltagy et al., "Longformer" (2020), section 3.1; Jiang et al., "Mistral 7B" (2023).
"""

from __future__ import annotations

from typing import Any

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def sliding_window(window: int) -> MaskMod:
    """``window``: how many keys a query sees at most, its own included; at least 1."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        return (kv_idx <= q_idx) & (q_idx - kv_idx < window)

    return mask


def example(sizes: Sizes) -> Case:
    return Case(sizes.inputs(), {"mask_mod": sliding_window(10)})


def picture() -> Picture:
    return seen("Sliding window", sliding_window(5), 20)


ENTRY = Entry(
    "Sliding window",
    "tilewright.attention(q, k, v, mask_mod=sliding_window(10))",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
