"""What the figures were measured on: processor, versions, load, and what its memory can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch

from tilewright.bench.timing import timed

PACKAGES = ("torch", "numpy", "llvmlite", "numba", "torch-mlir", "transformers", "tilewright")
THREADS = 2
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_MIB = 1 << 20


Load = Annotated[float, "or -1"]  # where the system does not say; for who reads reports


@dataclass(frozen=True)
class Machine:
    """One machine at the time of one run. Speeds are None where they were not measured."""

    kind: str  # the class whose machines give comparable figures: avx2, avx512-zen5, …
    model: str
    cores: int
    threads: int  # of both sides
    versions: dict[str, str]
    wait_policy: str
    load_at_start: Load
    read_gb_per_s: float | None = None
    matmul_f32_gflops: float | None = None
    matmul_bf16_gflops: float | None = None
    gpu: str = ""  # what was measured on, where that was not the processor

    @property
    def wide(self) -> bool:
        """Held to the figures for AVX-512, not to those for AVX2."""
        return self.kind.startswith("avx512")


def now() -> str:
    """The date and time of a record, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_machine(threads: int = THREADS) -> Machine:
    """The facts that cost nothing to find; ``measure_machine`` adds the speeds."""
    facts = _cpuinfo()
    return Machine(
        kind=machine_class(facts),
        model=_model(facts),
        cores=os.cpu_count() or 1,
        threads=threads,
        versions={"python": platform.python_version()} | versions_of(PACKAGES),
        # read for the report only: libgomp is who obeys it
        wait_policy=os.environ.get("OMP_WAIT_POLICY", "") or "the library's own",
        load_at_start=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
    )


def machine_class(facts: Mapping[str, str]) -> str:
    """The class from the first processor's lines of /proc/cpuinfo ("flags", "cpu family", …)."""
    flags = set(facts.get("flags", "").split())
    amd = facts.get("vendor_id") == "AuthenticAMD"
    if flags >= _AVX512:
        zen = {"25": "-zen4", "26": "-zen5"}.get(facts.get("cpu family", ""), "")
        return "avx512" + (zen if amd else "")
    if flags >= {"avx2", "fma"}:
        return "avx2"
    return platform.machine() or "unknown"


def measure_machine(machine: Machine, quick: bool = False) -> Machine:
    """The same machine with its speeds; ``quick`` takes sizes too small to mean anything."""
    size = 256 if quick else 2048
    return replace(
        machine,
        read_gb_per_s=read_bandwidth(16 if quick else 512),
        matmul_f32_gflops=matmul_gflops(torch.float32, size),
        matmul_bf16_gflops=matmul_gflops(torch.bfloat16, size) if has_bf16_dot() else None,
    )


def read_bandwidth(mebibytes: int = 512, rounds: int = 7) -> float:
    """GB/s at which torch's sum reads memory that no cache holds: the best of ``rounds``."""
    data = torch.ones(mebibytes * _MIB // 4)
    timed(data.sum)
    return data.numel() * 4 / min(timed(data.sum) for _ in range(rounds)) / 1e9


def matmul_gflops(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """GFLOP/s of torch's square matrix product: the best of ``rounds``."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    timed(lambda: a @ b)
    return 2.0 * size**3 / min(timed(lambda: a @ b) for _ in range(rounds)) / 1e9


def has_bf16_dot() -> bool:
    """Whether the processor multiplies bf16 itself; where it does not, torch takes forever."""
    return "avx512_bf16" in _cpuinfo().get("flags", "").split()


def _cpuinfo() -> dict[str, str]:
    """The first processor's facts; nothing where there is no /proc."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _model(facts: Mapping[str, str]) -> str:
    name = facts.get("model name") or platform.processor() or "unknown"
    numbers = [
        f"{k} {facts[f'{p}{k}']}"
        for p, k in (("cpu ", "family"), ("", "model"))
        if f"{p}{k}" in facts
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
