"""The neighbours of products on a GPU, at the sizes of a model of seven billion weights."""

from __future__ import annotations

from dataclasses import replace

from tilewright.bench.suites.fused import cases, fused_problem, least
from tilewright.bench.suites.problem import Problem

SIZES = 4096, 4096, 11008, 32768  # tokens, hidden, inner, vocabulary
TINY = 16, 64, 96, 256


def problems(device: str, floats: str, quick: bool) -> list[Problem]:
    return [
        fused_problem(section, name, replace(case, floats=floats, device=device))
        for name, (section, case) in cases(*(TINY if quick else SIZES)).items()
    ]


def smallest(device: str, floats: str, section: str) -> Problem:
    case = replace(least(section), floats=floats, device=device)
    return fused_problem(section, "next to nothing", case)
