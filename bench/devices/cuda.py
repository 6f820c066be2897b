"""A CUDA device: times between events, memory from torch's allocator, roofs by copies and
products."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tilewright import BenchError
from tilewright.bench.machine import Machine, describe_machine, versions_of
from tilewright.bench.method.clock import Call, Clock
from tilewright.bench.method.memory import Growth
from tilewright.bench.method.roofs import MIB, Roofs

PACKAGES = ("triton", "cupy-cuda12x", "cupy-cuda13x", "cuda-core", "cuda-bindings")
CYCLES = 2.0e9  # in a second, at most: a wait of so many cycles takes no less than is meant
FIRST_HEAD_START = 1e-3  # seconds that a call's start takes on the host, before that is known
LONGEST_HEAD_START = 0.1
REFERENCE_SIZE = 4096  # of a bf16 product; about 0.2 ms on an H100
LEAST_EVICTED = 256 * MIB
_SIZES = 1 << 30, 8192  # bytes of a copy, rows of a product
_QUICK = 1 << 20, 256


def cuda_device(index: int) -> Cuda:
    """The device of this number. Raises BenchError where torch finds none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise BenchError(
            "torch finds no CUDA device here: leave --device out to measure on the CPU, or add "
            "--dry to rehearse the suite in Triton's interpreter"
        )
    if index >= count:
        raise BenchError(f"there is no device cuda:{index}; there are cuda:0 to cuda:{count - 1}")
    return Cuda(index)


@dataclass(frozen=True)
class Cuda:
    """The device ``cuda:index``."""

    index: int = 0
    kind: str = "cuda"
    floats: str = "bf16"

    @property
    def tensors(self) -> str:
        return f"cuda:{self.index}"

    def describe(self) -> Machine:
        facts, here = torch.cuda.get_device_properties(self.index), describe_machine()
        capability = f"sm_{facts.major}{facts.minor}"
        text = (
            f"{facts.name}, {capability}, {facts.multi_processor_count} multiprocessors, "
            f"CUDA {torch.version.cuda}"
        )
        versions = here.versions | versions_of(PACKAGES)
        return replace(here, kind=gpu_class(facts.name), gpu=text, versions=versions)

    def roofs(self, quick: bool) -> Roofs:
        found = cuda_roofs(self, quick)
        self.tidy()  # sittings are other processes, which need the memory
        return found

    def evicted(self, roofs: Roofs) -> int:
        return max(LEAST_EVICTED, 4 * roofs.cache_bytes)

    def clock(self, evicted: int) -> Clock:
        return CudaClock(self.tensors, evicted)

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """What starts a kernel may take the current device's stream, wherever tensors lie."""
        with torch.cuda.device(self.index):
            yield

    def finish(self) -> None:
        torch.cuda.synchronize(self.index)

    def once(self, call: Call) -> float:
        return _between_events(self.tensors, call, 1, FIRST_HEAD_START)[0]

    def growth(self, call: Call) -> Growth | None:
        """Of what torch's allocator gave out."""
        self.finish()
        before = torch.cuda.memory_allocated(self.index)
        torch.cuda.reset_peak_memory_stats(self.index)
        kept = call()
        self.finish()
        peak, after = (
            torch.cuda.max_memory_allocated(self.index),
            torch.cuda.memory_allocated(self.index),
        )
        del kept
        return Growth(max(0, peak - before), max(0, after - before))

    def held(self) -> int | None:
        self.finish()
        return int(torch.cuda.memory_allocated(self.index))

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


def gpu_class(name: str) -> str:
    """The class whose machines give comparable figures: ``NVIDIA H100 80GB HBM3`` is h100, ``NVIDIA
    GeForce RTX 4090`` rtx-4090."""
    short = re.sub(r"\b(NVIDIA|GeForce|Tesla|Quadro)\b", " ", name)
    short = re.split(r"[-\s](?:SXM|PCIe|NVL|HBM|\d+\s?GB)", short, flags=re.IGNORECASE)[0]
    return re.sub(r"[^a-z0-9]+", "-", short.lower()).strip("-") or "gpu"


# ---- times


@dataclass
class CudaClock:
    """Of the device, between two events. It first waits for as long as the host takes to start the
    calls, so that they follow each other without gaps: what a start costs is measured by itself
    (``launch``)."""

    device: str
    evicted: int  # bytes
    most_calls: int = 64  # a device takes some thousand starts before it makes the host wait
    _read: Call = field(init=False)
    _product: Call = field(init=False)
    _starts: dict[int, float] = field(default_factory=dict)  # seconds on the host, by call

    def __post_init__(self) -> None:
        count = max(1, self.evicted // 4)
        self._read = torch.ones(count, dtype=torch.float32, device=self.device).sum
        size, made = REFERENCE_SIZE, partial(torch.rand, device=self.device, dtype=torch.bfloat16)
        a, b, out = (made(size, size) for _ in range(3))
        self._product = partial(torch.mm, a, b, out=out)

    def seconds(self, call: Call, calls: int = 1) -> float:
        known = self._starts.get(id(call), FIRST_HEAD_START)
        head_start = min(LONGEST_HEAD_START, 1.5 * known * calls)
        seconds, self._starts[id(call)] = _between_events(self.device, call, calls, head_start)
        return seconds

    def launch(self, call: Call, calls: int = 1) -> float:
        """On the host, with the device idle at first, until all is done."""
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - began) / calls

    def evict(self) -> float:
        """By reading, so that nothing is left to be written back while the next call runs."""
        return self.seconds(self._read)

    def compute(self) -> float:
        return self.seconds(self._product, 2)


def _between_events(device: str, call: Call, calls: int, head_start: float) -> tuple[float, float]:
    """Seconds of each of ``calls`` calls: on the device, and of starting it on the host. The device
    waits for ``head_start`` seconds at first."""
    with torch.cuda.device(device):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda._sleep(round(head_start * CYCLES))  # type: ignore[no-untyped-call]
        start.record()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls, host / calls


# ---- roofs


def cuda_roofs(device: Cuda, quick: bool) -> Roofs:
    """Copies of what no cache holds (bytes read and written) and of what the second-level cache
    does, and products of each kind of number that torch multiplies there."""
    nbytes, size = _QUICK if quick else _SIZES
    cache = int(torch.cuda.get_device_properties(device.index).L2_cache_size)
    clock, rounds = CudaClock(device.tensors, LEAST_EVICTED), 3 if quick else 15
    small = max(1 << 16, cache // 8)
    peaks = {
        kind: 2.0 * size**3 / seconds
        for kind, make in _PRODUCTS.items()
        if (seconds := _product_seconds(clock, make, size, device.tensors, rounds)) is not None
    }
    return Roofs(
        memory=_copy_speed(clock, nbytes, device.tensors, 1, rounds),
        cache=_copy_speed(clock, small, device.tensors, 20, rounds),
        cache_bytes=cache,
        peaks=peaks,
    )


def _copy_speed(clock: CudaClock, nbytes: int, where: str, calls: int, rounds: int) -> float:
    source = torch.ones(nbytes, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    return 2 * nbytes / min(clock.seconds(copy, calls) for _ in range(rounds))


def _floats(dtype: torch.dtype) -> Callable[[int, str], Call]:
    def make(size: int, where: str) -> Call:
        a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        return partial(torch.mm, a, b, out=torch.empty_like(a))

    return make


def _bytes(size: int, where: str) -> Call:
    a, b = (
        torch.randint(-127, 128, (size, size), dtype=torch.int8, device=where) for _ in range(2)
    )
    return partial(torch._int_mm, a, b.t())


_PRODUCTS: dict[str, Callable[[int, str], Call]] = {
    "bf16": _floats(torch.bfloat16),
    "f32": _floats(torch.float32),
    "int8": _bytes,
}


def _product_seconds(
    clock: CudaClock, make: Callable[[int, str], Any], size: int, where: str, rounds: int
) -> float | None:
    """The median: the best is from before the device was warm. None where torch has no such
    product."""
    try:
        call = make(size, where)
        for _ in range(3):
            call()
        return statistics.median(clock.seconds(call) for _ in range(rounds))
    except (RuntimeError, NotImplementedError):
        return None
