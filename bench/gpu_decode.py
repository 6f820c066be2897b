"""One query a sequence on a CUDA device: ``python -m tilewright.bench.gpu_decode OUT``.

First whether results are right (few keys against float64, many against torch), then times in
interleaved rounds: keys and values in bf16, in pages, and in caches of a few bits, with the default
schedule and others, beside torch's SDPA and torch.compile(flex_attention); as shares of the copy
bandwidth that the same run measured. What is read is several times larger than the caches. Writes
OUT as JSON after every step; exits with 1 if a result is wrong. ``--dry``: tiny problems under
Triton's interpreter (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import tilewright
from tilewright.gpu import using_schedule

HEADS, KEY_HEADS, WIDTH, KEYS = 32, 8, 128, 8192
CACHES = {
    "u8 u4": ("u8", "u4"),
    "u4 u4": ("u4", "u4"),
    "u8 u8": ("u8", "u8"),
    "u3 u3": ("u3", "u3"),
}
# rows, positions, warps, stages, bulk copies
TENSORS = {
    "16x64 4w 4s bulk": (16, 64, 4, 4, True),
    "16x128 4w 2s bulk": (16, 128, 4, 2, True),
    "16x128 8w 3s bulk": (16, 128, 8, 3, True),
    "16x64 4w 3s": (16, 64, 4, 3, False),
}
CODES = {
    "16x64 8w 2s": (16, 64, 8, 2, False),
    "16x64 4w 3s": (16, 64, 4, 3, False),
    "16x128 8w 2s": (16, 128, 8, 2, False),
    "16x32 4w 3s": (16, 32, 4, 3, False),
}
DRY = (16, 32, 4, 2, False)
Call = Callable[[], torch.Tensor]


@dataclass
class Problem:
    """A batch with its keys and values, and what was found so far."""

    batch: int
    keys: int
    device: torch.device
    dry: bool

    def __post_init__(self) -> None:
        self.dtype = torch.float32 if self.dry else torch.bfloat16
        self.heads, self.shared, self.width = (4, 1, 16) if self.dry else (HEADS, KEY_HEADS, WIDTH)
        self.q = self._random(self.heads, 1)
        self.k, self.v = (self._random(self.shared, self.keys) for _ in "kv")

    def _random(self, heads: int, length: int) -> torch.Tensor:
        shape = self.batch, heads, length, self.width
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def cache(self, k: str, v: str) -> tilewright.KVCache:
        """Keys and values in few bits, some tokens at a time."""
        made = tilewright.KVCache(
            self.batch, self.shared, self.width, k=k, v=v, capacity=self.keys, device=self.device
        )
        for at in range(0, self.keys, 1024):
            made.append(*(x[:, :, at : at + 1024] for x in (self.k, self.v)))
        return made

    def pages(self, size: int = 16) -> dict[str, torch.Tensor]:
        """The same keys and values in pages in any order."""
        count = self.keys // size
        order = torch.randperm(self.batch * count, device=self.device)
        table = order.view(self.batch, count).int()
        found = {}
        for name, x in (("k", self.k), ("v", self.v)):
            parts = x[:, :, : count * size].transpose(1, 2).reshape(-1, size, *x.shape[1:4:2])
            pool = torch.empty_like(parts)
            pool[order] = parts
            found[name] = pool
        used = torch.full((self.batch,), count * size, device=self.device, dtype=torch.int32)
        return {**found, "block_table": table, "seqused_k": used}

    def ours(self, *given: Any, schedule: tuple[Any, ...] | None = None, **options: Any) -> Call:
        chosen = DRY if self.dry else schedule

        def call() -> torch.Tensor:
            with using_schedule(*chosen) if chosen else nullcontext():
                out = tilewright.attention(self.q, *given, enable_gqa=True, **options)
            assert isinstance(out, torch.Tensor)
            return out

        return call

    def torch_sdpa(self) -> Call:
        return lambda: F.scaled_dot_product_attention(self.q, self.k, self.v, enable_gqa=True)

    def torch_flex(self) -> Call:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention)
        return lambda: compiled(self.q, self.k, self.v, enable_gqa=True)

    def exact(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """In float64, one sequence after another."""
        groups = self.heads // self.shared
        found = []
        for b in range(self.batch):
            keys, values = (x[b].double().repeat_interleave(groups, 0) for x in (k, v))
            s = self.q[b].double() @ keys.transpose(-1, -2) * self.width**-0.5
            found.append(torch.softmax(s, -1) @ values)
        return torch.stack(found)

    def bytes(self, *tensors: torch.Tensor) -> int:
        return sum(x.numel() * x.element_size() for x in (*tensors, self.q, self.q))


class Run:
    """What was found so far, and how long the whole may take."""

    def __init__(self, path: Path, seconds: float, dry: bool) -> None:
        self.path, self.dry = path, dry
        self.end = time.perf_counter() + seconds
        self.device = torch.device("cpu" if dry else "cuda")
        self.found: dict[str, Any] = {"checks": {}, "rows": {}, "notes": []}

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def check(self, name: str, call: Call, want: torch.Tensor, bound: float) -> bool:
        try:
            error = float((call().double() - want).norm() / want.norm())
        except Exception as problem:
            self.found["notes"].append(f"{name}: {type(problem).__name__}: {problem}"[:600])
            error = float("nan")
        self.found["checks"][name] = good = error < bound
        print(f"{name}: error {error:.2e}{'' if good else ' WRONG'}", flush=True)
        return good

    def milliseconds(self, call: Call) -> float:
        if self.dry:
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e3
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        for _ in range(5):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 5

    def rounds(self, calls: dict[str, Call]) -> dict[str, float]:
        """Medians of interleaved rounds, after a warm-up; a call that fails is left out."""
        usable = {}
        for name, call in calls.items():
            try:
                for _ in range(1 if self.dry else 3):
                    call()
                usable[name] = call
            except Exception as problem:
                self.found["notes"].append(f"{name}: {type(problem).__name__}: {problem}"[:600])
        times: dict[str, list[float]] = {name: [] for name in usable}
        for _ in range(1 if self.dry else 11):
            for name, call in usable.items():
                times[name].append(self.milliseconds(call))
        return {name: statistics.median(x) for name, x in times.items()}


def main() -> int:
    """Everything in order of importance; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    run = Run(Path(options.path), options.seconds, options.dry)
    try:
        run.found["copy_bytes_per_second"] = copy_bandwidth(run)
        correctness(run)
        for batch in (1,) if run.dry else (16, 1):
            if time.perf_counter() < run.end:
                times(run, batch)
        run.found["ok"] = all(run.found["checks"].values())
    except BaseException:
        run.found["ok"] = False
        run.found["error"] = traceback.format_exc()
        print(run.found["error"], flush=True)
    run.save()
    return 0 if run.found["ok"] else 1


def copy_bandwidth(run: Run) -> float:
    """Bytes read and written in a second by a copy of 1 GiB."""
    size = 1 << 20 if run.dry else 1 << 30
    source = torch.zeros(size, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    return 2e3 * size / statistics.median(run.milliseconds(copy) for _ in range(7))


def correctness(run: Run) -> None:
    """Against float64, with lengths that are no multiples of anything."""
    for keys in (45, 70) if run.dry else (45, 777, 3001):
        problem = Problem(2, keys, run.device, run.dry)
        bound = 1e-5 if run.dry else 1e-2
        dense = problem.ours(problem.k, problem.v)
        run.check(f"bf16, {keys} keys", dense, problem.exact(problem.k, problem.v), bound)
        for name, (k, v) in CACHES.items():
            cache = problem.cache(k, v)
            want = problem.exact(*(x.to(run.device) for x in cache.dequantize()))
            run.check(f"{name}, {keys} keys", problem.ours(cache), want, bound)
    run.save()


def times(run: Run, batch: int) -> None:
    """Milliseconds, shares of the copy bandwidth, and speed beside bf16 and torch."""
    problem = Problem(batch, 64 if run.dry else KEYS, run.device, run.dry)
    label = "" if batch == 16 else f", batch {batch}"
    want = problem.ours(problem.k, problem.v)().double()
    calls = {"default": problem.ours(problem.k, problem.v), "torch sdpa": problem.torch_sdpa()}
    if not run.dry:
        calls["torch flex"] = problem.torch_flex()
        for name, schedule in TENSORS.items():
            calls[name] = problem.ours(problem.k, problem.v, schedule=schedule)
    for name, call in calls.items():
        run.check(f"bf16{label}, {name}", call, want, 1e-4 if run.dry else 1e-2)
    found = run.rounds(calls)
    size = problem.bytes(problem.k, problem.v)
    record(run, f"decode bf16{label}", found, size, {"torch": min_of(found, "torch")})
    ours = min(t for n, t in found.items() if not n.startswith("torch"))
    pages: dict[str, Any] = problem.pages()
    paged = {"default": problem.ours(pages.pop("k"), pages.pop("v"), **pages)}
    if run.check(f"pages{label}", paged["default"], want, 1e-4 if run.dry else 1e-2):
        record(run, f"decode pages{label}", run.rounds(paged), size, {"bf16": ours})
    for name, (k, v) in CACHES.items():
        if time.perf_counter() > run.end:
            run.found["notes"].append(f"{name}{label}: no time left")
            return
        cache = problem.cache(k, v)
        calls = {"default": problem.ours(cache)}
        for title, schedule in {} if run.dry else CODES.items():
            calls[title] = problem.ours(cache, schedule=schedule)
        size = problem.bytes() + cache.keys.nbytes + cache.values.nbytes
        record(run, f"decode {name}{label}", run.rounds(calls), size, {"bf16": ours})


def min_of(found: dict[str, float], start: str) -> float:
    return min((t for n, t in found.items() if n.startswith(start)), default=float("nan"))


def record(run: Run, key: str, found: dict[str, float], size: int, peers: dict[str, float]) -> None:
    """A row for every way, with its share of the copy bandwidth and its speed beside others."""
    run.found["rows"][key] = {
        name: {
            "ms": round(t, 5),
            "share_of_copy": round(size / t * 1e3 / run.found["copy_bytes_per_second"], 3),
            **{f"times_{peer}": round(other / t, 3) for peer, other in peers.items()},
        }
        for name, t in found.items()
    }
    run.found["rows"][key]["bytes"] = size
    run.save()
    print(f"{key}: {json.dumps(run.found['rows'][key])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
