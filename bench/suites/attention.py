"""Attention: prefill over a length, decode over a cache, and masks and scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tilewright.bench import mask_workloads as masks
from tilewright.bench.roofline import Work
from tilewright.bench.suites.problem import FLOATS, Problem, Suite

TOLERANCES = {"f32": 1e-4, "bf16": 3e-2}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Attention:
    """q [batch, heads, queries, head] over k, v [batch, groups, keys, head]; ``function(length)``
    makes a mask_mod, or a score_mod with ``score``, and ``kind`` says which to providers that have
    it built in; ``causal`` hides the keys behind a query, too."""

    queries: int
    keys: int
    head: int = 64
    heads: int = 8
    groups: int = 8
    dtype: str = "f32"
    causal: bool = False
    function: Callable[[int], Function] | None = None
    score: bool = False
    kind: str = ""
    batch: int = 1
    device: str = "cpu"

    def inputs(self) -> Inputs:
        random = torch.Generator(self.device).manual_seed(0)

        def normal(heads: int, length: int) -> torch.Tensor:
            shape = self.batch, heads, length, self.head
            made = torch.randn(shape, generator=random, device=self.device)
            return made.to(FLOATS[self.dtype])

        keys = (self.groups, self.keys)
        return normal(self.heads, self.queries), normal(*keys), normal(*keys)

    def mods(self) -> dict[str, Function]:
        """The mask or score as flex_attention's argument, {} for none; ``causal`` is none."""
        if self.function is None:
            return {}
        return {"score_mod" if self.score else "mask_mod": self.function(self.keys)}

    def visible(self) -> float:
        """The share of pairs that is not masked."""
        if self.causal:
            return (self.queries + 1) / 2 / self.queries
        if self.function is None or self.score:
            return 1.0
        return masks.visible_share(self.function(self.keys), self.keys)

    def work(self) -> Work:
        """Both products over what is visible; each input and the output once."""
        size = self.batch * FLOATS[self.dtype].itemsize * self.head
        moved = size * (2 * self.heads * self.queries + 2 * self.groups * self.keys)
        pairs = self.batch * self.heads * self.queries * self.keys * self.visible()
        return Work(float(moved), 4.0 * pairs * self.head)

    def exact(self, inputs: Inputs) -> torch.Tensor:
        """In float64, some rows of a head at a time: the matrix of all of them is large."""
        q, k, v = inputs
        share, mods = self.heads // self.groups, self.mods()
        if self.causal:
            mods["mask_mod"] = masks.causal(self.keys)
        out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
        columns = torch.arange(self.keys, device=q.device)
        for b, h in itertools.product(range(self.batch), range(self.heads)):
            key, value = k[b, h // share].double(), v[b, h // share].double()
            for first in range(0, self.queries, 1024):
                rows = torch.arange(first, min(first + 1024, self.queries), device=q.device)
                scores = q[b, h, rows].double() @ key.T / math.sqrt(self.head)
                at = *torch.tensor([b, h], device=q.device), rows[:, None], columns
                if "score_mod" in mods:
                    scores = mods["score_mod"](scores, *at)
                if "mask_mod" in mods:
                    scores = scores.masked_fill(~mods["mask_mod"](*at), -math.inf)
                out[b, h, rows] = scores.softmax(-1) @ value
        return out


def attention_problem(
    section: str, name: str, case: Attention, size: float = 0.0, series: str = ""
) -> Problem:
    """A problem of this suite, or of its counterpart for GPUs."""
    return Problem(
        suite="attention",
        section=section,
        name=name,
        case=case,
        work=case.work(),
        arithmetic=case.dtype,
        make=case.inputs,
        exact=case.exact,
        tolerance=TOLERANCES[case.dtype],
        parameters={
            **({"batch": case.batch} if case.batch > 1 else {}),
            "queries": case.queries,
            "keys": case.keys,
            "heads": case.heads,
            "key heads": case.groups,
            "head": case.head,
            "dtype": case.dtype,
            "visible share": round(case.visible(), 4),
        },
        size=size,
        series=series,
        headline="cold" if case.queries == 1 else "warm",  # a cache of keys is never warm
    )


def problems(quick: bool) -> list[Problem]:
    """All of them; ``quick`` takes an eighth of the lengths."""
    by = 8 if quick else 1
    return [*_prefill(by), *_decode(by), *_masks(by)]


def _prefill(by: int) -> list[Problem]:
    found = []
    for length in (128, 512, 2048):
        case = Attention(length // by, length // by, causal=True)
        series = "prefill, f32 H8 D64 causal"
        found.append(_prefilled(f"f32 H8 L{case.keys} D64 causal", case, series))
    long = Attention(2048 // by, 2048 // by)
    for name, case in (
        ("f32 H8 L{} D64", long),
        ("f32 H8 L{} D128", replace(long, head=128)),
        ("f32 H8 L{} D80", replace(long, queries=777 // by, keys=777 // by, head=80)),
        ("f32 H32/8 L{} D64 causal", replace(long, heads=32, causal=True)),
        ("bf16 H8 L{} D64", replace(long, dtype="bf16")),
        ("bf16 H8 L{} D64 causal", replace(long, dtype="bf16", causal=True)),
    ):
        found.append(_prefilled(name.format(case.keys), case))
    return found


def _prefilled(name: str, case: Attention, series: str = "") -> Problem:
    return attention_problem("prefill", name, case, case.keys, series)


def _decode(by: int) -> list[Problem]:
    found = []
    for dtype in ("f32", "bf16"):
        for keys in (1024, 4096, 16384):
            case = Attention(1, keys // by, 128, 32, 8, dtype)
            name, series = f"{dtype} H32/8 {case.keys:,} keys D128", f"decode, {dtype} H32/8 D128"
            found.append(attention_problem("decode", name, case, case.keys, series))
    return found


def _masks(by: int) -> list[Problem]:
    length = 2048 // by
    kinds = (
        ("window 256", masks.window, False),
        ("documents of 512, causal", masks.causal_documents, False),
        ("ALiBi", masks.alibi, True),
        ("soft cap", masks.soft_cap, True),
    )
    found = []
    for name, function, score in kinds:
        case = Attention(length, length, function=function, score=score)
        found.append(attention_problem("masks", f"{name}, f32 H8 L{length} D64", case, length))
    return found


def smallest(section: str) -> Problem:
    """One query and a key or two of one head."""
    case = Attention(1, 1, 64, 1, 1)
    if section == "masks":
        case = replace(case, queries=2, keys=2, function=masks.window)
    return attention_problem(section, "next to nothing", case)


SUITE = Suite("attention", "Attention: prefill, decode, masks and scores", problems, smallest)
