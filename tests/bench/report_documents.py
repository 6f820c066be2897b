"""Reports made by hand: no test of what is written about numbers depends on a time."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

from tests.bench.conftest import make_machine
from tilewright.bench.method.roofs import Roofs
from tilewright.bench.method.statistics import estimate, ratios
from tilewright.bench.report import document as d

FACTORS = {"tilewright": 1.0, "torch-eager": 4.0, "torch-sdpa": 1.5, "flex": 1.02}
ROOFS = Roofs(3.0e10, 9.0e10, 32 << 20, {"f32": 2.3e11, "bf16": 4.5e11})


def samples(
    seconds: float, seed: int, noise: float = 0.01, sittings: int = 7, rounds: int = 5
) -> list[list[float]]:
    """Times of a call with noise between and within sittings."""
    source = random.Random(seed)
    found = []
    for _ in range(sittings):
        level = seconds * source.lognormvariate(0, noise)
        found.append([level * source.lognormvariate(0, noise) for _ in range(rounds)])
    return found


def make_problem(
    name: str,
    section: str,
    seconds: float,
    seed: int,
    factors: dict[str, float] | None = None,
    **changes: Any,
) -> d.ProblemResults:
    """One problem, cold twice as slow as warm, and a provider that failed."""
    factors = FACTORS if factors is None else factors
    results = []
    reference = samples(1e-3, seed + 999, 0.005)
    mine = {state: samples(seconds * by, seed, 0.01) for state, by in (("warm", 1), ("cold", 2))}
    for at, (provider, factor) in enumerate(factors.items()):
        found: dict[str, d.Times] = {}
        for state, by in (("warm", 1.0), ("cold", 2.0)):
            theirs = mine[state] if at == 0 else samples(seconds * by * factor, seed + at, 0.01)
            found[state] = d.Times(
                time=estimate(theirs),
                ratio=None if at == 0 else estimate(ratios(mine[state], theirs)),
                reference=estimate(ratios(reference, theirs)),
                roof=0.6 / factor,
                samples=theirs,
            )
        error = 2e-7 * (1 + at)
        results.append(
            d.Result(
                provider,
                "ok",
                "a form",
                "",
                {"a form": seconds * factor},
                error * 3,
                error,
                0.2 * at,
                1 << 20,
                3 << 20,
                found["warm"],
                found["cold"],
            )
        )
    results.append(d.Result("onnxruntime", "failed", reason="RuntimeError: no <such> operator"))
    made = d.ProblemResults(
        name=name,
        section=section,
        parameters={"length": 64, "dtype": "f32"},
        operations=seconds * 1e11,
        bytes=seconds * 1e9,
        arithmetic="f32",
        size=64.0,
        series="",
        headline="warm",
        tolerance=1e-4,
        floors={"warm": seconds * 0.6, "cold": seconds * 0.6},
        bounds={"warm": "operations", "cold": "bytes"},
        results=results,
    )
    return replace(made, **changes)


def make_document(**changes: Any) -> d.Document:
    """Two sections, one with a series of sizes; ``changes`` replace its parts."""
    return replace(_document(), **changes)


@cache
def _document() -> d.Document:
    series = [
        make_problem(
            f"L{size}",
            "prefill",
            size * 1e-5,
            size,
            size=float(size),
            series="prefill",
            operations=size**2 * 1e4,
            bytes=size * 1e4,
        )
        for size in (64, 256, 1024)
    ]
    problems = [*series, make_problem("1,024 keys", "decode", 2e-4, 5, headline="cold")]
    measured = [d.ProviderState(name, name, "measured", {"torch": "2.13.0"}) for name in FACTORS]
    measured += [d.ProviderState("onnxruntime", "ONNX Runtime", "measured", {})]
    gone = d.ProviderState(
        "openvino", "OpenVINO", "absent", {}, "is not installed", "pip install openvino"
    )
    launches = [
        d.Launch(section, name, "a form", estimate(samples(1e-5, 3)))
        for section in ("prefill", "decode")
        for name in FACTORS
    ]
    return d.Document(
        format=d.FORMAT,
        version=d.VERSION,
        suite="attention",
        about="Attention: prefill, decode, masks and scores",
        date="2026-11-26T12:00:00+00:00",
        seconds=120.0,
        machine=make_machine(),
        roofs=ROOFS,
        method=d.Method(7, 4.0, 0.99, 64 << 20, False, "new"),
        noise=d.Noise(1e-3, 0.04, 2e-3, 0.06, [0.1, 0.2]),
        providers=[*measured, gone],
        launches=launches,
        problems=problems,
    )
