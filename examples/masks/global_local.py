"""Global and local: a window to both sides, and a few tokens that see and are seen by all.

The global tokens (a question, a class token) stand first. They carry what the windows cannot: two
steps lead from any token to any other.

Source: Beltagy et al., "Longformer" (2020), section 3.1; Zaheer et al., "Big Bird" (2020).
"""

from __future__ import annotations

from typing import Any

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, MaskMod, Position, Sizes


def global_local(tokens: int, reach: int) -> MaskMod:
    """``tokens``: the first ones, which are global; ``reach``: how far others see to each side."""

    def mask(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        local = (q_idx - kv_idx <= reach) & (kv_idx - q_idx <= reach)
        return local | (q_idx < tokens) | (kv_idx < tokens)

    return mask


def example(sizes: Sizes) -> Case:
    return Case(sizes.inputs(), {"mask_mod": global_local(3, 8)})


def picture() -> Picture:
    return seen("Global and local", global_local(2, 3), 20)


ENTRY = Entry(
    "Global and local",
    "tilewright.attention(q, k, v, mask_mod=global_local(3, 8))",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
