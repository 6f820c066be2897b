"""One query a sequence on a CUDA device: ``python -m tilewright.bench.gpu_decode OUT``.

First whether results are right (few keys against float64, many against torch), then times in
interleaved rounds: keys and values in bf16, in pages, and in caches of a few bits, with the default
schedule and others, beside torch's SDPA and torch.compile(flex_attention); as shares of the copy
bandwidth that the same run measured. The caches are flushed before every call. Writes OUT as JSON
after every step; exits with 1 if a result is wrong. ``--dry``: tiny problems under Triton's
interpreter (set TRITON_INTERPRET=1 before).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import tilewright
from tilewright.bench.gpu_timing import Suite, run_suite
from tilewright.gpu import using_backend, using_schedule

HEADS, KEY_HEADS, WIDTH, KEYS = 32, 8, 128, 8192
CACHES = {
    "u8 u4": ("u8", "u4"),
    "u4 u4": ("u4", "u4"),
    "u8 u8": ("u8", "u8"),
    "u3 u3": ("u3", "u3"),
}
# rows, positions, warps, stages, bulk copies
TENSORS = {"16x128 4w 2s bulk": (16, 128, 4, 2, True), "16x64 4w 3s": (16, 64, 4, 3, False)}
# back end, and blocks instead of its own
CODES: dict[str, tuple[str, tuple[Any, ...] | None]] = {
    "triton": ("triton", None),
    "triton 16x64 4w 3s": ("triton", (16, 64, 4, 3, False)),
    "cuda 8x32 1w, 8 at once": ("cuda", (8, 32, 1, 2, False)),
    "cuda 8x64 1w, 8 at once": ("cuda", (8, 64, 1, 2, False)),
    "cuda 16x32 1w, 8 at once": ("cuda", (16, 32, 1, 2, False)),
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

    def ours(
        self,
        *given: Any,
        schedule: tuple[Any, ...] | None = None,
        backend: str = "gpu",
        **options: Any,
    ) -> Call:
        chosen = DRY if self.dry else schedule

        def call() -> torch.Tensor:
            with using_backend(backend), using_schedule(*chosen) if chosen else nullcontext():
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


def main() -> int:
    """1 if a result is wrong."""
    return run_suite(__doc__, 60.0, work)


def work(suite: Suite) -> None:
    """Everything in order of importance."""
    suite.found["copy_bytes_per_second"] = copy_bandwidth(suite)
    correctness(suite)
    for batch in (1,) if suite.dry else (16, 1):
        if suite.left() > 0:
            times(suite, batch)


def copy_bandwidth(suite: Suite) -> float:
    """Bytes read and written in a second by a copy of 1 GiB."""
    size = 1 << 20 if suite.dry else 1 << 30
    source = torch.zeros(size, dtype=torch.uint8, device=suite.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    return 2e3 * size / statistics.median(suite.milliseconds(copy) for _ in range(7))


def correctness(suite: Suite) -> None:
    """Against float64, with lengths that are no multiples of anything."""
    for keys in (45, 70) if suite.dry else (45, 777, 3001):
        problem = Problem(2, keys, suite.device, suite.dry)
        bound = 1e-5 if suite.dry else 1e-2
        dense = problem.ours(problem.k, problem.v)
        check(suite, f"bf16, {keys} keys", dense, problem.exact(problem.k, problem.v), bound)
        for name, (k, v) in CACHES.items():
            cache = problem.cache(k, v)
            want = problem.exact(*(x.to(suite.device) for x in cache.dequantize()))
            check(suite, f"{name}, {keys} keys", problem.ours(cache), want, bound)


def times(suite: Suite, batch: int) -> None:
    """Milliseconds, shares of the copy bandwidth, and speed beside bf16 and torch."""
    problem = Problem(batch, 64 if suite.dry else KEYS, suite.device, suite.dry)
    label = "" if batch == 16 else f", batch {batch}"
    want, bound = problem.ours(problem.k, problem.v)().double(), 1e-4 if suite.dry else 1e-2
    calls = {"default": problem.ours(problem.k, problem.v), "torch sdpa": problem.torch_sdpa()}
    if not suite.dry:
        calls["torch flex"] = problem.torch_flex()
        for name, schedule in TENSORS.items():
            calls[name] = problem.ours(problem.k, problem.v, schedule=schedule)
    for name, call in calls.items():
        check(suite, f"bf16{label}, {name}", call, want, bound)
    size = problem.bytes(problem.k, problem.v)
    found = record(suite, f"decode bf16{label}", calls, size)
    ours = min(t for n, t in found.items() if not n.startswith("torch"))
    pages: dict[str, Any] = problem.pages()
    paged = {"default": problem.ours(pages.pop("k"), pages.pop("v"), **pages)}
    if check(suite, f"pages{label}", paged["default"], want, bound):
        record(suite, f"decode pages{label}", paged, size, ours)
    for name, (k, v) in CACHES.items():
        if suite.left() < 0:
            suite.note(f"{name}{label}: no time left")
            return
        cache = problem.cache(k, v)
        calls = {"default": problem.ours(cache)}
        several = len(CODES) if (k, v) == ("u8", "u4") else 1  # every form compiles for seconds
        for title, (backend, blocks) in [] if suite.dry else [*CODES.items()][:several]:
            calls[title] = problem.ours(cache, schedule=blocks, backend=backend)
        exact = calls["default"]().double()
        calls = {
            n: c for n, c in calls.items() if check(suite, f"{name}{label}, {n}", c, exact, bound)
        }
        size = problem.bytes() + cache.keys.nbytes + cache.values.nbytes
        record(suite, f"decode {name}{label}", calls, size, ours)


def check(suite: Suite, key: str, call: Call, want: torch.Tensor, bound: float) -> bool:
    return suite.check(key, lambda: float((call().double() - want).norm() / want.norm()), bound)


def record(
    suite: Suite, key: str, calls: dict[str, Call], size: int, bf16: float | None = None
) -> dict[str, float]:
    """A row for every way, with its share of the copy bandwidth and, where that took ``bf16``
    milliseconds, its speed beside keys and values in bf16."""

    def more(name: str, ms: float) -> dict[str, float]:
        share = size / ms * 1e3 / suite.found["copy_bytes_per_second"]
        beside = {} if bf16 is None else {"times_bf16": round(bf16 / ms, 3)}
        return {"share_of_copy": round(share, 3), "bytes": size, **beside}

    found = suite.times(calls)
    suite.record(key, found, more)
    return found


if __name__ == "__main__":
    sys.exit(main())
