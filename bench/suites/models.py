"""A small Llama of transformers' own classes with random weights: a prompt, then one token."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from tilewright.bench.llama import DEMO, ModelSize, build_model, new_cache, prompt
from tilewright.bench.roofline import Work
from tilewright.bench.suites.problem import FLOATS, Problem, Suite

SMALL = replace(DEMO, layers=6)
TOLERANCES = {"f32": 1e-3, "bf16": 5e-2}
TINY = ModelSize(hidden=64, layers=1, heads=2, groups=1, intermediate=96)


@dataclass(frozen=True)
class Tokens:
    """``new`` tokens after ``past`` others, whose keys and values are there."""

    size: ModelSize
    new: int
    past: int
    floats: str = "f32"
    device: str = "cpu"

    def work(self) -> Work:
        """Products with all weights, and the two of attention."""
        s = self.size
        head = s.hidden // s.heads
        layer = (
            s.hidden * s.hidden * 2 + 2 * s.hidden * s.groups * head + 3 * s.hidden * s.intermediate
        )
        weights = s.layers * layer + 256 * s.hidden
        pairs = self.new * self.past + self.new * (self.new + 1) / 2
        keys = 2 * s.layers * (self.past + self.new) * s.groups * head
        operations = 2.0 * weights * self.new + 4.0 * s.layers * s.hidden * pairs
        return Work(float(FLOATS[self.floats].itemsize) * (weights + keys), operations)


@dataclass(frozen=True)
class Given:
    """``call(model)`` gives the logits of the new tokens. A prompt fills a new cache; the cache
    that one token finds is as it was afterwards."""

    model: Any
    ids: torch.Tensor
    past: int
    cache: Any

    def call(self, model: Any) -> torch.Tensor:
        cache = self.cache if self.past else new_cache(self.model)
        out: torch.Tensor = model(self.ids, past_key_values=cache, use_cache=True).logits
        if self.past:
            cache.crop(-self.ids.shape[1])
        return out


@lru_cache(maxsize=1)
def _model(size: ModelSize, floats: str, device: str) -> Any:
    return build_model(size).to(device, FLOATS[floats])


def inputs(case: Tokens) -> Given:
    model = copy.deepcopy(_model(case.size, case.floats, case.device))
    ids = prompt(case.past + case.new).to(case.device)
    cache = None
    if case.past:
        cache = new_cache(model)
        with torch.inference_mode():
            model(ids[:, : case.past], past_key_values=cache, use_cache=True)
    return Given(model, ids[:, case.past :], case.past, cache)


def exact(given: Given) -> torch.Tensor:
    """The whole text through the model in float64."""
    ids = prompt(given.past + given.ids.shape[1]).to(given.ids.device)
    wide = copy.deepcopy(given.model).double()
    logits: torch.Tensor = wide(ids, use_cache=False).logits
    return logits[:, given.past :]


def model_problem(section: str, name: str, case: Tokens) -> Problem:
    """A problem of this suite, or of its counterpart for GPUs."""
    return Problem(
        suite="models",
        section=section,
        name=name,
        case=case,
        work=case.work(),
        arithmetic=case.floats,
        make=lambda: inputs(case),
        exact=exact,
        tolerance=TOLERANCES[case.floats],
        parameters={
            "new tokens": case.new,
            "tokens before": case.past,
            "layers": case.size.layers,
            "hidden": case.size.hidden,
        },
        size=float(case.new if section == "prompt" else case.past),
        series=section,
        headline="warm",  # its weights are larger than any cache, so each call empties it
    )


def problems(quick: bool) -> list[Problem]:
    size = TINY if quick else SMALL
    found = [
        model_problem("prompt", f"{n} tokens", Tokens(size, n, 0))
        for n in ((8,) if quick else (64, 512))
    ]
    return found + [
        model_problem("one token", f"after {n} tokens", Tokens(size, 1, n))
        for n in ((8,) if quick else (64, 512))
    ]


def smallest(section: str) -> Problem:
    case = Tokens(TINY, 4, 0) if section == "prompt" else Tokens(TINY, 1, 4)
    return model_problem(section, "next to nothing", case)


SUITE = Suite("models", "A small Llama: a prompt, and one token after another", problems, smallest)
