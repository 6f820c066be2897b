"""Attention on a CUDA device beside torch's: ``python -m tilewright.bench.gpu_attention OUT``.

First correctness (small problems against float64, large ones against torch), then times of several
schedules and back ends in interleaved rounds with torch's SDPA and torch.compile(flex_attention).
Writes OUT as JSON after every step; exits with 1 if a result is wrong. ``--dry`` runs tiny problems
under Triton's interpreter on a machine without a GPU (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.bench.gpu_attention_cases import (
    DEFAULT,
    DRY,
    MASKS,
    SHAPE,
    WAYS,
    Case,
    Function,
    Way,
    ours,
    small_cases,
)
from tilewright.bench.gpu_timing import Call, Suite, run_suite

REPEATS = 3  # calls of milliseconds that the matrix units bound: as many as warm these up


def main() -> int:
    """1 if a result is wrong."""
    return run_suite(__doc__, 140.0, work, jobs=jobs)


def work(suite: Suite) -> None:
    """Everything in order of importance; small problems with what time is left."""
    large(suite)
    for causal in (False, True):
        for length in (4096, 8192):
            beside_sdpa(suite, length, causal)
    for name in MASKS:
        beside_flex(suite, name, 8192)
    small(suite)


def jobs(suite: Suite) -> list[Call]:
    """What the measurements will call."""
    found: list[Call] = []
    q, k, v = _inputs(suite, 8192)
    for name in MASKS:
        options = MASKS[name](q.shape[1], 8192, suite.device)
        found.append(_flex(q, k, v, options))
    for way in (DEFAULT, *WAYS.values()):
        for causal in (False, True):
            found.append(partial(ours, way, q, k, v, is_causal=causal))
        for name in MASKS:
            options = MASKS[name](q.shape[1], 8192, suite.device)
            found.append(partial(ours, way, q, k, v, **options))
    return found + [case.ours for case in small_cases(suite.device, suite.dry)]


def ways(suite: Suite) -> dict[str, Way]:
    return DRY if suite.dry else WAYS


# ---- correctness


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def small(suite: Suite) -> None:
    """Against float64."""
    for case in small_cases(suite.device, suite.dry):
        if suite.left() < 2 and not suite.dry:
            suite.note(f"{case.key}: no time left")
            return
        suite.check(case.key, partial(_case_error, case), case.bound)


def _case_error(case: Case) -> float:
    return _relative(case.ours(), case.want())


def _inputs(suite: Suite, length: int) -> list[torch.Tensor]:
    b, h, d = SHAPE if not suite.dry else (1, 2, 16)
    return [
        torch.randn(b, h, length, d, device=suite.device, dtype=torch.float32).to(
            torch.float32 if suite.dry else torch.bfloat16
        )
        for _ in range(3)
    ]


def large(suite: Suite) -> None:
    """Every schedule against torch on the shapes that are timed."""
    q, k, v = _inputs(suite, 48 if suite.dry else 4096)
    for causal in (False, True):
        want = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
        for name, way in ways(suite).items():

            def error(way: Way = way, causal: bool = causal, want: torch.Tensor = want) -> float:
                return _relative(ours(way, q, k, v, is_causal=causal), want)

            suite.check(f"large, causal {causal}, {name}", error, 1e-2)


# ---- times


def _sdpa(backend: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Call:
    from torch.nn.attention import sdpa_kernel

    def call() -> object:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return call


def beside_sdpa(suite: Suite, length: int, causal: bool) -> None:
    """Times beside torch's cuDNN and flash kernels."""
    from torch.nn.attention import SDPBackend

    length = 32 if suite.dry else length
    q, k, v = _inputs(suite, length)
    calls: dict[str, Call] = {}
    if suite.dry:
        calls["torch"] = _sdpa(SDPBackend.MATH, q, k, v, causal=causal)
    else:
        calls["torch cudnn"] = _sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, causal=causal)
        calls["torch flash"] = _sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, causal=causal)
    for name, way in ways(suite).items():
        if suite.found["checks"].get(f"large, causal {causal}, {name}"):
            calls[name] = partial(ours, way, q, k, v, is_causal=causal)
    calls["default"] = partial(ours, DEFAULT, q, k, v, is_causal=causal)
    _record(suite, f"L{length} causal {causal}", calls, _flops(q, causal))


def beside_flex(suite: Suite, name: str, length: int) -> None:
    """Times beside torch.compile(flex_attention), its block mask made beforehand."""
    if suite.left() < 6:
        suite.note(f"{name}: no time left")
        return
    length = 32 if suite.dry else length
    q, k, v = _inputs(suite, length)
    options = MASKS[name](q.shape[1], length, suite.device)
    calls: dict[str, Call] = {}
    if not suite.dry:
        calls["torch flex"] = _flex(q, k, v, options)
    for label, way in (*ways(suite).items(), ("default", DEFAULT)):
        call = partial(ours, way, q, k, v, **options)
        if suite.dry or suite.check(
            f"large {name}, {label}", partial(_beside, call, calls["torch flex"]), 1.5e-2
        ):
            calls[label] = call
    _record(suite, f"{name} L{length}", calls, _flops(q, True))


def _beside(call: Call, peer: Call) -> float:
    got, want = call(), peer()
    assert isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
    return _relative(got, want)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Function]) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    length = q.shape[2]
    mask = create_block_mask(options["mask_mod"], None, None, length, length, device=str(q.device))
    score = options.get("score_mod")
    return lambda: compiled(q, k, v, score_mod=score, block_mask=mask)


def _flops(q: torch.Tensor, causal: bool) -> float:
    b, h, n, d = q.shape
    return 4.0 * b * h * n * n * d * (0.5 if causal else 1.0)


def _record(suite: Suite, key: str, calls: dict[str, Call], flops: float) -> None:
    times = suite.times(calls, repeats=REPEATS)
    suite.record(key, times, lambda name, ms: {"tflops": round(flops / ms / 1e9, 1)})


if __name__ == "__main__":
    sys.exit(main())
