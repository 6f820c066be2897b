"""ALiBi: no position embeddings; scores fall with the distance, by a slope for each head.

``slopes`` are 2^(-8/H), 2^(-16/H), … for H heads. The bias is a number per position, made in
registers; a matrix of biases is never stored.

Source: Press et al., "Train Short, Test Long: Attention with Linear Biases" (2022), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, shades
from examples.masks.entry import Case, Entry, Position, ScoreMod, Sizes


def alibi(slopes: Tensor) -> ScoreMod:
    """``slopes`` [H], floats."""

    def score_mod(score: Any, b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        return score - slopes[h] * (q_idx - kv_idx)

    return score_mod


def alibi_slopes(heads: int) -> Tensor:
    """The paper's slopes [H] for a power of two of heads: 2^(-8/H), 2^(-16/H), …, 2^-8."""
    return torch.exp2(-8.0 / heads * torch.arange(1, heads + 1))


def example(sizes: Sizes) -> Case:
    slopes = alibi_slopes(sizes.heads)
    options = {"score_mod": alibi(slopes), "is_causal": True}
    return Case(sizes.inputs(), options, {"slopes": slopes})


def picture() -> Picture:
    return shades("ALiBi", alibi(torch.tensor([0.5])), 20, causal=True)


ENTRY = Entry(
    "ALiBi",
    "tilewright.attention(q, k, v, score_mod=alibi(slopes), is_causal=True)",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
