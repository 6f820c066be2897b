"""T5's relative bias: a learned number per head and bucket of distances, added to the score.

Half of the buckets are for keys ahead. Of either half, the nearer distances have buckets of their
own, further ones share them, logarithmically; all from ``furthest`` on share the last.

Source: Raffel et al., "T5" (2020), section 2.1; ``_relative_position_bucket`` of its code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from examples.masks.drawing import Picture, shades
from examples.masks.entry import Case, Entry, Position, ScoreMod, Sizes


def t5_relative_bias(table: Tensor, buckets: int = 32, furthest: int = 128) -> ScoreMod:
    """``table`` [buckets, H], floats; ``furthest``: the distance at which the last bucket begins.
    T5 does not scale its scores: pass ``scale=1.0`` along."""
    half = buckets // 2
    exact = half // 2
    per_bucket = (half - exact) / math.log(furthest / exact)

    def score_mod(score: Any, b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        distance = (q_idx - kv_idx).abs()
        far = torch.log(distance.clamp(min=exact).to(torch.float32) / exact) * per_bucket
        shared = (exact + far.to(torch.int64)).clamp(max=half - 1)
        bucket = torch.where(distance < exact, distance, shared)
        return score + table[torch.where(kv_idx > q_idx, bucket + half, bucket), h]

    return score_mod


def example(sizes: Sizes) -> Case:
    table = Sizes(1).numbers(32, sizes.heads, seed=3)
    options = {"score_mod": t5_relative_bias(table), "scale": 1.0}
    inputs = sizes.inputs()
    inputs[0] = inputs[0] / 4  # T5's weights keep unscaled scores small
    return Case(inputs, options, {"table": table})


def picture() -> Picture:
    """A table that falls with the bucket's number, so that each has a shade of its own."""
    table = -torch.arange(8.0).remainder(4)[:, None]
    return shades("T5 relative bias", t5_relative_bias(table, buckets=8, furthest=16), 20)


ENTRY = Entry(
    "T5's relative bias",
    "tilewright.attention(q, k, v, score_mod=t5_relative_bias(table), scale=1.0)",
    example,
    picture,
)

if __name__ == "__main__":
    ENTRY.run()
