"""Soft cap: scores are bent so that they stay between -cap and cap.

Small scores hardly change, large ones cannot take all of the attention. The picture shows scores
that rise from left to right, without the cap above and with it below: there the ends level off.

Source: Gemma Team, "Gemma 2" (2024), section 2; before it Bello et al. (2017), section 4.
"""

from __future__ import annotations

from typing import Any

import torch

from examples.masks.drawing import Picture, as_darkness
from examples.masks.entry import Case, Entry, Position, ScoreMod, Sizes


def soft_cap(cap: float) -> ScoreMod:
    """``cap``: what scores approach; Gemma 2 has 50."""

    def score_mod(score: Any, b: Position, h: Position, q_idx: Position, kv_idx: Position) -> Any:
        return cap * torch.tanh(score / cap)

    return score_mod


def example(sizes: Sizes) -> Case:
    return Case(sizes.inputs(), {"score_mod": soft_cap(2.0)})


def picture() -> Picture:
    zero = torch.tensor(0)
    rising = torch.linspace(-10, 10, 20).expand(4, 20)
    capped = soft_cap(4.0)(rising, zero, zero, zero, zero)
    cells = as_darkness(torch.cat([rising, torch.full((1, 20), torch.nan), capped]))
    return Picture("Soft cap", cells, rows="capped, not", columns="scores from -10 to 10")


ENTRY = Entry(
    "Soft cap", "tilewright.attention(q, k, v, score_mod=soft_cap(2.0))", example, picture
)

if __name__ == "__main__":
    ENTRY.run()
