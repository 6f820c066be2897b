"""Attention on a GPU: prefill over a length, decode of a batch over its caches, masks and
scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tilewright.bench import mask_workloads as masks
from tilewright.bench.suites.attention import Attention, attention_problem
from tilewright.bench.suites.problem import Problem

WINDOW = 1024
DOCUMENT = 1024  # tokens in the mean


def problems(device: str, floats: str, quick: bool) -> list[Problem]:
    """All of them; ``quick`` takes next to no rows."""
    some = Attention(1, 1, 16 if quick else 128, 2, 2, floats, device=device)
    plain = replace(some, heads=2 if quick else 16, groups=2 if quick else 16)
    plain = replace(plain, batch=1 if quick else 4)
    return [
        *_prefill(plain, 128 if quick else 1),
        *_decode(some, quick),
        *_masks(plain, 64 if quick else 8192),
    ]


def _prefill(plain: Attention, by: int) -> list[Problem]:
    found = []
    for length in (1024, 4096, 8192):
        for causal in (False, True):
            case = replace(plain, queries=length // by, keys=length // by, causal=causal)
            series = f"prefill, {_facts(case)}{' causal' if causal else ''}"
            found.append(_prefilled(case, series))
    middle = replace(plain, queries=4096 // by, keys=4096 // by, causal=True)
    found.append(_prefilled(replace(middle, head=middle.head // 2)))
    if by == 1:
        found.append(_prefilled(replace(middle, heads=32, groups=8)))
    return found


def _prefilled(case: Attention, series: str = "") -> Problem:
    name = f"{_facts(case)} L{case.keys}{' causal' if case.causal else ''}"
    return attention_problem("prefill", name, case, case.keys, series)


def _facts(case: Attention) -> str:
    heads = f"H{case.heads}" if case.heads == case.groups else f"H{case.heads}/{case.groups}"
    return f"{case.dtype} B{case.batch} {heads} D{case.head}"


def _decode(some: Attention, quick: bool) -> list[Problem]:
    found = []
    for batch in (1, 2) if quick else (1, 16):
        for keys in (32, 64) if quick else (1024, 8192, 32768):
            heads = (2, 1) if quick else (32, 8)
            case = replace(some, batch=batch, keys=keys, heads=heads[0], groups=heads[1])
            name, series = f"{_facts(case)} {keys:,} keys", f"decode, {_facts(case)}"
            found.append(attention_problem("decode", name, case, keys, series))
    return found


def _masks(plain: Attention, length: int) -> list[Problem]:
    documents = partial(masks.causal_documents, mean=DOCUMENT, device=plain.device)
    slopes = partial(masks.alibi, heads=plain.heads, device=plain.device)
    long = replace(plain, queries=length, keys=length)
    scored = replace(long, causal=True, score=True)
    kinds = (
        replace(long, function=partial(masks.window, size=WINDOW), kind="window"),
        replace(long, function=documents, kind="documents"),
        replace(scored, function=slopes, kind="ALiBi"),
        replace(scored, function=masks.soft_cap, kind="soft cap"),
    )
    return [
        attention_problem("masks", f"{x.kind}, {_facts(x)} L{length} causal", x, length)
        for x in kinds
    ]


def smallest(device: str, floats: str, section: str) -> Problem:
    """One query and a key or two of one head."""
    case = Attention(1, 1, 64, 1, 1, floats, device=device)
    if section == "masks":
        case = replace(case, queries=2, keys=2, function=masks.window, kind="window")
    return attention_problem(section, "next to nothing", case)
