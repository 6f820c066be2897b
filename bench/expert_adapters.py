"""The ten adapters of ExpertWeave (arXiv 2508.17624), as counts of experts per layer. No torch.

The paper says the largest and the mean number of experts that each adapter trains in a layer. The
counts per layer are drawn: one random layer has the largest number, the others binomial numbers of
the mean's rate between 1 and the largest, then random layers are moved by one until the sum fits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LAYERS = 26  # with experts, of the paper's base model (DeepSeek-V2-Lite: 27, the first is dense)
EXPERTS, HIDDEN, INTERMEDIATE = 64, 1024, 768  # the shape that the figures are for
MOST = 13  # E_max, over all adapters


@dataclass(frozen=True)
class AdapterShape:
    """A row of the paper's table: experts per layer, the largest and the mean; sparsity S_i."""

    name: str
    most: int
    mean: float
    sparsity: float


ADAPTERS = (
    AdapterShape("gate-math", 12, 7.04, 0.41),
    AdapterShape("token-math", 9, 6.12, 0.32),
    AdapterShape("gate-intent", 12, 9.50, 0.21),
    AdapterShape("token-intent", 8, 7.12, 0.11),
    AdapterShape("gate-summary", 11, 7.73, 0.30),
    AdapterShape("token-summary", 8, 5.15, 0.36),
    AdapterShape("gate-law", 12, 7.35, 0.39),
    AdapterShape("token-law", 10, 6.58, 0.34),
    AdapterShape("gate-translation", 13, 4.69, 0.64),
    AdapterShape("token-translation", 6, 3.85, 0.36),
)


def draw_counts(shape: AdapterShape, layers: int = LAYERS, seed: int = 0) -> list[int]:
    """Experts per layer, in 1 to ``most``, one layer at ``most``, of the mean ``mean``."""
    source = random.Random(f"{shape.name} {seed}")
    rate = shape.mean / shape.most
    counts = [max(1, sum(source.random() < rate for _ in range(shape.most))) for _ in range(layers)]
    fixed = source.randrange(layers)
    counts[fixed] = shape.most
    total = max(round(shape.mean * layers), shape.most + layers - 1)
    while (missing := total - sum(counts)) != 0:
        at = source.randrange(layers)
        moved = counts[at] + (1 if missing > 0 else -1)
        if at != fixed and 1 <= moved <= shape.most:
            counts[at] = moved
    return counts


def draw_experts(count: int, experts: int, source: random.Random) -> list[int]:
    """Which experts of a layer an adapter trains: ``count`` different ones."""
    return sorted(source.sample(range(experts), count))
