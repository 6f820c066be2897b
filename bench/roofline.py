"""The least time that a workload can take on a device: ``python -m tilewright.bench.roofline OUT``.

A workload moves bytes through device memory (each input read once, each output written once) and
does operations in matrix units; the ceilings of both are measured in the same run, by a large copy
and a large bf16 product, on random data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches: bytes and operations per second, of copies and bf16 products."""

    bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True)
class Work:
    """What a workload must move and do."""

    bytes: float
    operations: float

    def seconds(self, ceilings: Ceilings) -> float:
        """The floor of its time."""
        by_bytes = self.bytes / ceilings.bytes_per_second
        return max(by_bytes, self.operations / ceilings.operations_per_second)

    def bound(self, ceilings: Ceilings) -> str:
        """What the floor comes from."""
        by_bytes = self.bytes / ceilings.bytes_per_second
        less = by_bytes < self.operations / ceilings.operations_per_second
        return "operations" if less else "bytes"


def attention(
    batch: int, heads: int, queries: int, keys: int, width: int, visible: float = 1.0
) -> Work:
    """bf16 attention with as many key heads as query heads; ``visible``: the share of scores that a
    mask leaves (0.5: causal)."""
    moved = 2.0 * batch * heads * width * (2 * queries + 2 * keys)
    return Work(moved, 4.0 * batch * heads * queries * keys * width * visible)


def decode(
    batch: int, heads: int, key_heads: int, keys: int, width: int, bits: tuple[float, float]
) -> Work:
    """One query a sequence; ``bits`` of an element of keys and values, scales included."""
    cache = batch * key_heads * keys * width * sum(bits) / 8
    return Work(cache + 2 * 2.0 * batch * heads * width, 4.0 * batch * heads * keys * width)


def low_bit(rows: int, inner: int, outputs: int, bits: float, group: int = 128) -> Work:
    """[rows, inner] times a weight of ``bits`` with a bf16 scale for each group."""
    weight = outputs * inner * bits / 8 + 2.0 * outputs * inner / group
    return Work(weight + 2.0 * rows * (inner + outputs), 2.0 * rows * inner * outputs)


def routing(tokens: int, experts: int, chosen: int) -> Work:
    """f32 logits in; weights, ids and places out. No matrix products."""
    return Work(4.0 * tokens * experts + 12.0 * tokens * chosen, 0.0)


def experts(tokens: int, chosen: int, count: int, hidden: int, inner: int) -> Work:
    """A gated block in bf16: the weights of every expert that gets a token, read once."""
    touched = count * (1 - (1 - chosen / count) ** tokens)
    weights = 2.0 * touched * 3 * hidden * inner
    return Work(weights + 2 * 2.0 * tokens * hidden, 6.0 * tokens * chosen * hidden * inner)


# ---- ceilings


def measure(device: torch.device, dry: bool = False) -> Ceilings:
    """Medians of a copy of 1 GiB (bytes read and written) and of an 8192 x 8192 bf16 product."""
    size = 1 << 20 if dry else 1 << 30
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median(device, partial(target.copy_, source), dry)
    del source, target
    n = 128 if dry else 8192
    dtype = torch.float32 if dry else torch.bfloat16
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty(n, n, device=device, dtype=dtype)
    product = _median(device, partial(torch.mm, a, b, out=out), dry)
    return Ceilings(2 * size / copy, 2.0 * n**3 / product)


def _median(device: torch.device, call: Callable[[], object], dry: bool) -> float:
    """Seconds of a call."""
    for _ in range(1 if dry else 3):
        call()
    times = []
    for _ in range(2 if dry else 15):
        if device.type != "cuda":
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
            continue
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def table(ceilings: Ceilings) -> dict[str, dict[str, Any]]:
    """Floors of the workloads that the suites measure: milliseconds, and what they come from."""
    rows: dict[str, Work] = {}
    for length in (4096, 8192):
        rows[f"L{length} causal False"] = attention(4, 16, length, length, 128)
        rows[f"L{length} causal True"] = attention(4, 16, length, length, 128, 0.5)
    rows["decode bf16"] = decode(16, 32, 8, 8192, 128, (16, 16))
    rows["decode u8 u4"] = decode(16, 32, 8, 8192, 128, (8.25, 4.25))
    for outputs in (8192, 57344):
        for m in (1, 16):
            for bits in range(1, 9):
                rows[f"u{bits} M{m} K8192 N{outputs}"] = low_bit(m, 8192, outputs, bits)
    rows["u4 M4096 K8192 N8192"] = low_bit(4096, 8192, 8192, 4)
    rows["routing 4096 E128 k8"] = routing(4096, 128, 8)
    for m in (1, 128, 4096):
        rows[f"experts M{m}"] = experts(m, 8, 128, 2816, 704)
    return {
        name: {"ms": work.seconds(ceilings) * 1e3, "bound": work.bound(ceilings), **asdict(work)}
        for name, work in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="JSON to write")
    parser.add_argument("--seconds", type=float, default=15.0, help="(as other suites)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    ceilings = measure(device, options.dry)
    found = {"ceilings": asdict(ceilings), "floors": table(ceilings), "ok": True}
    path = Path(options.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    tera = ceilings.bytes_per_second / 1e12, ceilings.operations_per_second / 1e12
    print(f"copies {tera[0]:.2f} TB/s, bf16 products {tera[1]:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
