"""Products with quantised weights on a CUDA device beside torch's: ``python -m
tilewright.bench.gpu_lowbit OUT``.

First correctness (small problems against float64), then times of random codes in groups of 128 with
bf16 activations, beside torch's bf16 product and its 4-bit one, in interleaved rounds, the caches
flushed before each call. Writes OUT as JSON after every step; exits with 1 if a result is wrong.
``--dry`` runs tiny problems under Triton's interpreter (set TRITON_INTERPRET=1 before).
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
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tilewright
from tilewright.bench.roofline import Ceilings, low_bit, measure
from tilewright.gpu import using_schedule

Call = Callable[[], object]
GROUP = 128
DTYPES = ("u4", "u8", "u3", "u5", "u6", "u7", "u2", "u1")
FLOATS = ("f8e4m3", "f6e3m2", "f4e2m1", "f5e2m2", "f7e3m3", "f3e1m1")
MANY = ("u4", "u8", "u3", "f6e3m2")  # that are timed with many rows, too
SHAPES = ((8192, 8192), (8192, 57344))  # K, N
ROWS = (1, 16)
# rows, codes of a turn, warps, stages: tried beside the default ones
SCHEDULES: dict[str, tuple[int, int, int, int]] = {
    "8 x 128 2w 3s": (8, 128, 2, 3),
    "8 x 128 2w 6s": (8, 128, 2, 6),
    "8 x 128 4w 4s": (8, 128, 4, 4),
    "16 x 128 4w 4s": (16, 128, 4, 4),
}
FLUSHED = 256 << 20  # bytes: more than any second-level cache


class Run:
    """What was found so far, and how long the whole may take."""

    def __init__(self, path: Path, seconds: float, dry: bool) -> None:
        self.path, self.dry = path, dry
        self.end = time.perf_counter() + seconds
        self.device = torch.device("cpu" if dry else "cuda")
        self.found: dict[str, Any] = {"checks": {}, "rows": {}, "notes": []}
        self.noise = None if dry else torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def left(self) -> float:
        return self.end - time.perf_counter()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.found["notes"].append(text)

    def kernels(self) -> AbstractContextManager[None]:
        """Where CPU tensors get GPU kernels, for a dry run."""
        return using_schedule(8, 64, 2, 2) if self.dry else nullcontext()


def main() -> int:
    """Everything in order of importance; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--tune", action="store_true", help="other schedules, too")
    parser.add_argument("--processes", type=int, default=12, help="that compile kernels at first")
    parser.add_argument("--warm", type=int, help="(a process that compiles its share)")
    options = parser.parse_args()
    run = Run(Path(options.path), options.seconds, options.dry)
    if options.warm is not None:
        return warm(run, options.warm, options.processes)
    try:
        _describe(run)
        if not run.dry:
            _warm_all(run, options.processes)
        small(run)
        ceilings = measure(run.device, run.dry)
        for shape in SHAPES[: 1 if run.dry else None]:
            for rows in ROWS:
                beside_torch(run, rows, shape, (*DTYPES, *FLOATS), ceilings)
        beside_torch(run, 4096, SHAPES[0], MANY, ceilings)
        if options.tune or run.dry:
            for rows in ROWS:
                tune(run, rows, SHAPES[0], ceilings)
        run.found["ok"] = all(run.found["checks"].values())
    except BaseException:
        run.found["ok"] = False
        run.found["error"] = traceback.format_exc()
        print(run.found["error"], flush=True)
    run.save()
    return 0 if run.found["ok"] else 1


def _describe(run: Run) -> None:
    run.found["torch"] = torch.__version__
    if run.dry:
        return
    import triton

    run.found["triton"] = triton.__version__
    run.found["device"] = torch.cuda.get_device_name()
    run.found["capability"] = list(torch.cuda.get_device_capability())
    run.save()


# ---- problems


def random_weight(
    dtype: str, outputs: int, inner: int, device: torch.device
) -> tilewright.QuantizedTensor:
    """Random codes and scales: as fast to make as memory lets."""
    bits = int(dtype[1])
    top = (1 << bits) - 2 if dtype == "f8e4m3" else (1 << bits) - 1  # without NaN's code
    codes = torch.randint(0, top + 1, (outputs, inner), dtype=torch.uint8, device=device)
    if dtype == "f8e4m3":
        codes &= 0x7E  # neither of NaN's
    scales = torch.rand(outputs, -(-inner // GROUP), device=device).half() / 64 + 0.001
    return tilewright.QuantizedTensor.from_codes(codes, scales, dtype=dtype, group=GROUP)


def _sizes(run: Run, rows: int, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Rows, K and N as they are run."""
    return (min(rows, 3), 300, 70) if run.dry else (rows, *shape)


def _input(run: Run, rows: int, inner: int) -> torch.Tensor:
    return torch.randn(rows, inner, device=run.device).bfloat16()


def ours(run: Run, x: torch.Tensor, weight: tilewright.QuantizedTensor) -> torch.Tensor:
    with run.kernels():
        return tilewright.linear(x, weight)


# ---- compiling: Triton's cache is filled by several processes


def _warm_all(run: Run, processes: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "tilewright.bench.gpu_lowbit", str(run.path)]
    more = ["--processes", str(processes), "--warm"]
    started = [subprocess.Popen([*command, *more, str(i)]) for i in range(processes)]
    for process in started:
        try:
            process.wait(timeout=max(1.0, run.left() - 50))
        except subprocess.TimeoutExpired:
            process.kill()
    run.found["compile_seconds"] = round(time.perf_counter() - began, 1)
    print(f"compiled in {run.found['compile_seconds']} s", flush=True)


def warm(run: Run, share: int, processes: int) -> int:
    """Calls once what the measurements call; what fails there will be reported there."""
    jobs = [(rows, shape, d) for shape in SHAPES for rows in ROWS for d in (*DTYPES, *FLOATS)]
    jobs += [(4096, SHAPES[0], dtype) for dtype in MANY]
    for rows, (inner, outputs), dtype in jobs[share::processes]:
        try:
            weight = random_weight(dtype, outputs, inner, run.device)
            tilewright.linear(_input(run, rows, inner), weight)
        except Exception as problem:
            print(f"while compiling: {type(problem).__name__}: {problem}"[:300], flush=True)
    return 0


# ---- correctness


def small(run: Run) -> None:
    """Against float64, for every dtype, in every class of rows."""
    for dtype in (*DTYPES, *FLOATS, "nf4"):
        for rows in (1, 5, 16, 40, 200)[: 2 if run.dry else None]:
            key = f"{dtype}, {rows} rows"
            try:
                w = torch.randn(200, 1000, device=run.device)
                weight = tilewright.QuantizedTensor.from_float(w, dtype, 64)
                x = _input(run, rows, 1000)
                want = x.double() @ weight.dequantize().double().T
                got = ours(run, x, weight).double()
                error = float((got - want).norm() / want.norm())
            except Exception as problem:
                run.note(f"{key}: {type(problem).__name__}: {problem}"[:600])
                error = float("nan")
            run.found["checks"][key] = error < 6e-3
            if not error < 6e-3:
                run.note(f"WRONG {key}: {error:.2e}")
    run.save()
    print(f"small checks: {sum(run.found['checks'].values())} of {len(run.found['checks'])}")


# ---- times


def _milliseconds(run: Run, call: Call) -> float:
    if run.noise is None:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    run.noise.zero_()  # while it runs, the call is on its way
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _rounds(run: Run, calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Medians of interleaved rounds; a call that fails is left out."""
    usable: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            for _ in range(1 if run.dry else 2):
                call()
            if not run.dry:
                torch.cuda.synchronize()
            usable[name] = call
        except Exception as problem:
            run.note(f"{name}: {type(problem).__name__}: {problem}"[:600])
    times: dict[str, list[float]] = {name: [] for name in usable}
    for _ in range(1 if run.dry else rounds):
        for name, call in usable.items():
            times[name].append(_milliseconds(run, call))
    return {name: statistics.median(x) for name, x in times.items()}


def _torch_int4(run: Run, x: torch.Tensor, outputs: int) -> Call | None:
    """torch's own product with 4 bits, where it has one."""
    try:
        inner = x.shape[1]
        codes = torch.randint(0, 256, (outputs, inner // 2), dtype=torch.uint8, device=run.device)
        packed = torch._convert_weight_to_int4pack(codes, 8)
        beside = torch.rand(inner // GROUP, outputs, 2, device=run.device).bfloat16()
        call = partial(torch._weight_int4pack_mm, x, packed, GROUP, beside)
        call()
    except Exception as problem:
        run.note(f"torch's 4 bits: {type(problem).__name__}: {problem}"[:300])
        return None
    return call


def beside_torch(
    run: Run, rows: int, shape: tuple[int, int], dtypes: tuple[str, ...], ceilings: Ceilings
) -> None:
    """Times of all dtypes beside torch's bf16 product (and its 4-bit one)."""
    rows, inner, outputs = _sizes(run, rows, shape)
    x = _input(run, rows, inner)
    for first in range(0, len(dtypes), 4):  # a few at a time: memory
        if run.left() < 8:
            run.note(f"M{rows} K{inner} N{outputs}: no time left")
            return
        w = torch.randn(outputs, inner, device=run.device).bfloat16()
        calls: dict[str, Call] = {"torch bf16": partial(torch.nn.functional.linear, x, w)}
        int4 = _torch_int4(run, x, outputs) if first == 0 else None
        if int4 is not None:
            calls["torch int4"] = int4
        for dtype in dtypes[first : first + 4]:
            calls[dtype] = partial(ours, run, x, random_weight(dtype, outputs, inner, run.device))
        times = _rounds(run, calls, 15 if rows < 100 else 5)
        _record(run, (rows, inner, outputs), times, ceilings)


def tune(run: Run, rows: int, shape: tuple[int, int], ceilings: Ceilings) -> None:
    """u4 with other schedules."""
    rows, inner, outputs = _sizes(run, rows, shape)
    x = _input(run, rows, inner)
    weight = random_weight("u4", outputs, inner, run.device)
    calls: dict[str, Call] = {"u4": partial(ours, run, x, weight)}
    for name, schedule in SCHEDULES.items():
        if schedule[0] >= rows:

            def call(schedule: tuple[int, int, int, int] = schedule) -> object:
                with using_schedule(*schedule):
                    return tilewright.linear(x, weight)

            calls[f"u4 {name}"] = call
    _record(run, (rows, inner, outputs), _rounds(run, calls, 15), ceilings, "tuned ")


def _record(
    run: Run,
    sizes: tuple[int, int, int],
    times: dict[str, float],
    ceilings: Ceilings,
    more: str = "",
) -> None:
    """A row for every dtype, with torch's times beside: as roofline.py names them."""
    rows, inner, outputs = sizes
    peers = {name: {"ms": round(ms, 4)} for name, ms in times.items() if name.startswith("torch")}
    for name, ms in times.items():
        if name in peers:
            continue
        floor = low_bit(rows, inner, outputs, float(name[1]), GROUP).seconds(ceilings) * 1e3
        mine = {"ms": round(ms, 4), "share_of_floor": round(floor / ms, 3)}
        if "torch bf16" in times:
            mine["times_torch_bf16"] = round(times["torch bf16"] / ms, 2)
        run.found["rows"][f"{more}{name} M{rows} K{inner} N{outputs}"] = {"ours": mine, **peers}
        print(f"{more}{name} M{rows} N{outputs}: {mine}", flush=True)
    run.save()


if __name__ == "__main__":
    sys.exit(main())
