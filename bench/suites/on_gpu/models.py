"""A Llama on a GPU, of transformers' own classes with random weights, as wide as one of a billion
weights is: a prompt, then one token."""

from __future__ import annotations

from tilewright.bench.llama import ModelSize
from tilewright.bench.suites.models import TINY, Tokens, model_problem
from tilewright.bench.suites.problem import Problem

SIZE = ModelSize(hidden=2048, layers=8, heads=32, groups=8, intermediate=5632)


def problems(device: str, floats: str, quick: bool) -> list[Problem]:
    size, counts = (TINY, (8,)) if quick else (SIZE, (128, 1536))
    prompts = [
        model_problem("prompt", f"{n} tokens", Tokens(size, n, 0, floats, device)) for n in counts
    ]
    return prompts + [
        model_problem("one token", f"after {n} tokens", Tokens(size, 1, n, floats, device))
        for n in counts
    ]


def smallest(device: str, floats: str, section: str) -> Problem:
    new, past = (4, 0) if section == "prompt" else (1, 4)
    return model_problem(section, "next to nothing", Tokens(TINY, new, past, floats, device))
