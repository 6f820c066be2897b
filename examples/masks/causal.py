"""Causal: a query sees its own key and all earlier ones.

What every decoder uses. ``is_causal=True`` says the same without a function; written as a mask it
can be joined with others by "and" and "or".

Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.3.
"""

from __future__ import annotations

from typing import Any

from examples.masks.drawing import Picture, seen
from examples.masks.entry import Case, Entry, Position, Sizes


def causal(b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
    """Whether query ``q_idx`` sees key ``kv_idx``."""
    return kv_idx <= q_idx


def example(sizes: Sizes) -> Case:
    return Case(sizes.inputs(), {"mask_mod": causal})


def picture() -> Picture:
    return seen("Causal", causal, 20)


ENTRY = Entry("Causal", "tilewright.attention(q, k, v, mask_mod=causal)", example, picture)

if __name__ == "__main__":
    ENTRY.run()
