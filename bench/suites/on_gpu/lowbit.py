"""Low-bit products on a GPU: weights of 1 to 8 bits in groups of 128, activations in bf16."""

from __future__ import annotations

import torch

from tilewright.bench.suites.lowbit import LowBit, Weights, lowbit_problem
from tilewright.bench.suites.problem import FLOATS, Problem

GROUP = 128
SQUARE, WIDE = (8192, 8192), (57344, 8192)  # outputs, inner
ALL, SOME = (1, 2, 3, 4, 5, 6, 7, 8), (3, 4, 8)


def inputs(case: LowBit) -> Weights:
    """Random codes, drawn where they are needed: the wide weights have half a billion."""
    random = torch.Generator(case.device).manual_seed(case.bits)
    x = torch.randn(case.rows, case.inner, generator=random, device=case.device)
    codes = torch.empty(case.outputs, case.inner, dtype=torch.uint8, device=case.device)
    codes.random_(0, 1 << case.bits, generator=random)
    groups = case.outputs, case.inner // case.group
    scales = torch.rand(groups, generator=random, device=case.device) * 0.01 + 0.001
    return Weights(x.to(FLOATS[case.floats]), codes, scales.half().float(), case.zero)


def problems(device: str, floats: str, quick: bool) -> list[Problem]:
    """A row with every width; more rows, and the wide weights, with the widths that others have,
    and three bits."""

    def one(rows: int, bits: int, shape: tuple[int, int], series: str = "") -> Problem:
        outputs, inner = (64, 256) if quick else shape
        case = LowBit(rows, bits, "float", outputs, inner, GROUP, floats, device)
        wide = ", wide" if quick and shape == WIDE else ""
        name = f"u{bits}, M{rows} K{inner} N{outputs}{wide}"
        section = "one row" if rows == 1 else "several rows"
        return lowbit_problem(section, case, name, series, inputs)

    found = [one(1, bits, SQUARE, "bits, one row") for bits in ALL]
    found += [one(1, bits, WIDE) for bits in SOME]
    found += [one(rows, 4, SQUARE, "rows, u4") for rows in ((4, 16) if quick else (4, 16, 64, 256))]
    found += [one(16, bits, SQUARE) for bits in (3, 8)]
    found.append(one(16, 4, WIDE))
    return found if quick else [*found, one(4096, 4, SQUARE), one(4096, 8, SQUARE)]


def smallest(device: str, floats: str, section: str) -> Problem:
    case = LowBit(1, 4, "float", 64, 128, GROUP, floats, device)
    return lowbit_problem(section, case, "next to nothing", make=inputs)
