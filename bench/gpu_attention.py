"""Attention on a CUDA device beside torch's: ``python -m tilewright.bench.gpu_attention OUT``.

First correctness (small problems against float64, large ones against torch), then times of several
schedules in interleaved rounds with torch's SDPA back ends and with torch.compile(flex_attention).
Writes OUT as JSON after every step; exits with 1 if a result is wrong. ``--dry`` runs tiny problems
under Triton's interpreter on a machine without a GPU (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tilewright.bench.gpu_attention_cases import (
    DRY,
    MASKS,
    SCHEDULES,
    SHAPE,
    Function,
    Schedule,
    ours,
    small_cases,
)


class Run:
    """What was found so far, and how long the whole may take."""

    def __init__(self, path: Path, seconds: float, dry: bool) -> None:
        self.path, self.dry = path, dry
        self.end = time.perf_counter() + seconds
        self.device = torch.device("cpu" if dry else "cuda")
        self.found: dict[str, Any] = {"checks": {}, "rows": {}, "notes": []}

    def left(self) -> float:
        return self.end - time.perf_counter()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.found["notes"].append(text)

    def schedules(self) -> dict[str, Schedule]:
        return DRY if self.dry else SCHEDULES


def main() -> int:
    """Everything in order of importance; 1 if a check failed."""
    options = _options()
    run = Run(Path(options.path), options.seconds, options.dry)
    try:
        if options.warm is not None:
            return warm(run, options.warm, options.processes)
        _describe(run)
        if not run.dry:
            _warm_all(run, options.processes)
        small(run)
        large(run)
        for causal in (False, True):
            for length in (4096, 8192):
                beside_sdpa(run, length, causal)
        for name in MASKS:
            beside_flex(run, name, 8192)
        run.found["ok"] = all(run.found["checks"].values())
    except BaseException:
        run.found["ok"] = False
        run.found["error"] = traceback.format_exc()
        print(run.found["error"], flush=True)
    run.save()
    show(run)
    return 0 if run.found["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=140.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--processes", type=int, default=12, help="that compile kernels at first")
    parser.add_argument("--warm", type=int, help="(a process that compiles its share)")
    return parser.parse_args()


def _describe(run: Run) -> None:
    run.found["torch"] = torch.__version__
    if run.dry:
        return
    import triton

    run.found["triton"] = triton.__version__
    run.found["device"] = torch.cuda.get_device_name()
    run.found["capability"] = list(torch.cuda.get_device_capability())
    run.save()


# ---- compiling: the caches of Triton and torch are filled by several processes


def _warm_all(run: Run, processes: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "tilewright.bench.gpu_attention", str(run.path)]
    more = ["--processes", str(processes), "--warm"]
    started = [subprocess.Popen([*command, *more, str(i)]) for i in range(processes)]
    for process in started:
        try:
            process.wait(timeout=max(1.0, run.left() - 60))
        except subprocess.TimeoutExpired:
            process.kill()
    run.found["compile_seconds"] = round(time.perf_counter() - began, 1)
    print(f"compiled in {run.found['compile_seconds']} s", flush=True)


def warm(run: Run, share: int, processes: int) -> int:
    """Calls once what the measurements call; what fails there will be reported there."""
    jobs: list[Callable[[], object]] = []
    q, k, v = _inputs(run, 8192)
    for name in MASKS:
        options = MASKS[name](q.shape[1], 8192, run.device)
        jobs.append(_flex(q, k, v, options))
    for schedule in SCHEDULES.values():
        for causal in (False, True):
            jobs.append(partial(ours, schedule, q, k, v, is_causal=causal))
        if schedule[4]:
            for name in MASKS:
                options = MASKS[name](q.shape[1], 8192, run.device)
                jobs.append(partial(ours, schedule, q, k, v, **options))
    jobs += [case.ours for case in small_cases(run.device, run.dry)]
    for job in jobs[share::processes]:
        try:
            job()
        except Exception as problem:
            print(f"while compiling: {type(problem).__name__}: {problem}"[:300], flush=True)
    return 0


# ---- correctness


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def small(run: Run) -> None:
    """Against float64."""
    for case in small_cases(run.device, run.dry):
        try:
            error = _relative(case.ours(), case.want())
        except Exception as problem:
            run.note(f"{case.key}: {type(problem).__name__}: {problem}"[:600])
            error = float("nan")
        run.found["checks"][case.key] = error < case.bound
        if not error < case.bound:
            run.note(f"WRONG {case.key}: {error:.2e}")
    run.save()
    print(f"small checks: {sum(run.found['checks'].values())} of {len(run.found['checks'])}")


def _inputs(run: Run, length: int) -> list[torch.Tensor]:
    b, h, d = SHAPE if not run.dry else (1, 2, 16)
    return [
        torch.randn(b, h, length, d, device=run.device, dtype=torch.float32).to(
            torch.float32 if run.dry else torch.bfloat16
        )
        for _ in range(3)
    ]


def large(run: Run) -> None:
    """Every schedule against torch on the shapes that are timed."""
    q, k, v = _inputs(run, 48 if run.dry else 4096)
    for causal in (False, True):
        want = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
        for name, schedule in run.schedules().items():
            began = time.perf_counter()
            try:
                got = ours(schedule, q, k, v, is_causal=causal)
                error = _relative(got, want)
            except Exception as problem:
                run.note(f"{name}, causal {causal}: {type(problem).__name__}: {problem}"[:600])
                error = float("nan")
            key = f"large, causal {causal}, {name}"
            run.found["checks"][key] = error < 1e-2
            print(f"{key}: error {error:.2e}, {time.perf_counter() - began:.2f} s", flush=True)
    run.save()


# ---- times


def _milliseconds(run: Run, call: Callable[[], object], repeats: int) -> float:
    if run.dry:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def _rounds(run: Run, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of interleaved rounds; a call that fails is left out."""
    usable: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        try:
            for _ in range(1 if run.dry else 3):
                call()
            if not run.dry:
                torch.cuda.synchronize()
            usable[name] = call
        except Exception as problem:
            run.note(f"{name}: {type(problem).__name__}: {problem}"[:600])
    times: dict[str, list[float]] = {name: [] for name in usable}
    for _ in range(1 if run.dry else rounds):
        for name, call in usable.items():
            times[name].append(_milliseconds(run, call, 3))
    return {name: statistics.median(x) for name, x in times.items()}


def _sdpa(
    backend: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> Callable[[], object]:
    from torch.nn.attention import sdpa_kernel

    def call() -> object:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return call


def beside_sdpa(run: Run, length: int, causal: bool) -> None:
    """Times beside torch's cuDNN and flash kernels."""
    from torch.nn.attention import SDPBackend

    length = 32 if run.dry else length
    q, k, v = _inputs(run, length)
    calls: dict[str, Callable[[], object]] = {}
    if run.dry:
        calls["torch"] = _sdpa(SDPBackend.MATH, q, k, v, causal=causal)
    else:
        calls["torch cudnn"] = _sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, causal=causal)
        calls["torch flash"] = _sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, causal=causal)
    for name, schedule in run.schedules().items():
        if run.found["checks"].get(f"large, causal {causal}, {name}"):
            calls[name] = partial(ours, schedule, q, k, v, is_causal=causal)
    calls["default"] = lambda: ours(None, q, k, v, is_causal=causal)
    times = _rounds(run, calls, 9)
    _record(run, f"L{length} causal {causal}", times, _flops(q, causal), "torch")


def beside_flex(run: Run, name: str, length: int) -> None:
    """Times beside torch.compile(flex_attention), its block mask made beforehand."""
    if run.left() < 12:
        run.note(f"{name}: no time left")
        return
    length = 32 if run.dry else length
    q, k, v = _inputs(run, length)
    options = MASKS[name](q.shape[1], length, run.device)
    calls: dict[str, Callable[[], object]] = {}
    if not run.dry:
        calls["torch flex"] = _flex(q, k, v, options)
    tried = [n for n in run.schedules() if "bulk" in n or run.dry]
    for schedule in tried:
        calls[schedule] = partial(ours, run.schedules()[schedule], q, k, v, **options)
    calls["default"] = lambda: ours(None, q, k, v, **options)
    if not run.dry:
        want = calls["torch flex"]()
        assert isinstance(want, torch.Tensor)
        error = _relative(ours(run.schedules()[tried[0]], q, k, v, **options), want)
        run.found["checks"][f"large {name}"] = error < 1.5e-2
        print(f"{name}: error beside flex {error:.2e}", flush=True)
    times = _rounds(run, calls, 7)
    _record(run, f"{name} L{length}", times, _flops(q, True), "torch")


def _flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Function]
) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    length = q.shape[2]
    mask = create_block_mask(options["mask_mod"], None, None, length, length, device=str(q.device))
    score = options.get("score_mod")
    return lambda: compiled(q, k, v, score_mod=score, block_mask=mask)


def _flops(q: torch.Tensor, causal: bool) -> float:
    b, h, n, d = q.shape
    return 4.0 * b * h * n * n * d * (0.5 if causal else 1.0)


def _record(run: Run, key: str, times: dict[str, float], flops: float, peer: str) -> None:
    peers = [t for n, t in times.items() if n.startswith(peer)]
    row: dict[str, Any] = {
        n: {"ms": round(t, 4), "tflops": round(flops / t / 1e9, 1)} for n, t in times.items()
    }
    if peers:
        for name, t in times.items():
            row[name]["times_best_peer"] = round(min(peers) / t, 3)
    run.found["rows"][key] = row
    run.save()
    print(f"{key}: " + "; ".join(f"{n} {t:.3f} ms" for n, t in times.items()), flush=True)


def show(run: Run) -> None:
    """The table, last."""
    bad = [n for n, good in run.found["checks"].items() if not good]
    print(f"checks: {len(run.found['checks']) - len(bad)} good, {len(bad)} bad {bad[:6]}")
    for key, row in run.found["rows"].items():
        print(key)
        for name, x in row.items():
            ratio = x.get("times_best_peer", "")
            print(f"  {name:24} {x['ms']:9.3f} ms {x['tflops']:7.1f} TFLOP/s  {ratio}")


if __name__ == "__main__":
    sys.exit(main())
