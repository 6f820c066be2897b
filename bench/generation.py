"""Greedy text generation with a cache, step by step and timed, on two sides in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

Model = Callable[..., Any]
WARM_UP_STEPS = 2  # the first captures, the second would capture again if the length mattered


@dataclass
class Pass:
    """One side's way through one prompt: prefill, then one token after the other."""

    model: Model
    cache: Any
    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between the two best logits of each token
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def prefill(self, prompt: torch.Tensor) -> float:
        """Seconds of the whole prompt; its logits stay in ``logits``."""
        return self._call(prompt)

    def step(self) -> float:
        """Seconds of one more token: the best after the last one."""
        return self._call(torch.tensor([[self.tokens[-1]]]))

    def _call(self, ids: torch.Tensor) -> float:
        start = time.perf_counter()
        out = self.model(ids, past_key_values=self.cache, use_cache=True)
        seconds = time.perf_counter() - start
        self.logits = out.logits
        best = torch.topk(self.logits[0, -1], 2)
        self.tokens.append(int(best.indices[0]))
        self.gaps.append(float(best.values[0] - best.values[1]))
        return seconds


@dataclass
class Side:
    """One way to run the model, and what it took: ``first`` calls apart, since they compile."""

    model: Model
    prefills: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # the warm-up: prefill, steps
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # of the prompt
    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def generate(
    sides: tuple[Side, Side],
    make_cache: Callable[[], Any],
    prompt: torch.Tensor,
    steps: int,
    repeats: int,
    seconds: float,
) -> None:
    """Fills both sides: a short warm-up, which counts as ``first``, then up to ``repeats`` repeats,
    none of which begins after ``seconds`` but the first.

    ours theirs | theirs ours | …   for the prompts of the repeats and for the steps within each.
    """
    with torch.inference_mode():
        start = time.perf_counter()
        for repeat in range(1 + repeats):
            if repeat > 1 and time.perf_counter() - start > seconds:
                break
            passes = tuple(Pass(side.model, make_cache()) for side in sides)
            for at in _order(repeat):
                took = passes[at].prefill(prompt)
                (sides[at].prefills if repeat else sides[at].first).append(took)
                sides[at].logits = passes[at].logits
            for step in range(steps if repeat else WARM_UP_STEPS):
                for at in _order(repeat + step):
                    took = passes[at].step()
                    (sides[at].steps if repeat else sides[at].first).append(took)
            for side, done in zip(sides, passes, strict=True):
                side.tokens, side.gaps = done.tokens, done.gaps


def _order(turn: int) -> Iterator[int]:
    return iter((0, 1) if turn % 2 == 0 else (1, 0))


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Where the tokens part; None if they never do."""
    pairs = zip(ours, theirs, strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), None)
