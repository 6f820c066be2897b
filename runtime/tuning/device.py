"""What a measured time depends on besides the kernel: the processor, and how much of it."""

from __future__ import annotations

import os
import platform
from functools import cache

import torch

from tilewright.runtime.native import host_cpu
from tilewright.runtime.threads import num_threads


def device_fingerprint(gpu: bool) -> str:
    """A line that is the same on two machines just if schedules of one are worth trying first on
    the other: model, its generation, caches, cores and threads; of a GPU its name and memory."""
    return gpu_fingerprint(torch.cuda.current_device()) if gpu else cpu_fingerprint(num_threads())


@cache
def cpu_fingerprint(threads: int) -> str:
    """LLVM's name of the generation, the vendor's of the model, caches in KiB, cores, threads."""
    facts = _cpuinfo()
    model = " ".join(facts.get("model name", platform.processor() or platform.machine()).split())
    numbers = "/".join(facts.get(key, "?") for key in ("cpu family", "model", "stepping"))
    caches = "/".join(_caches()) or "?"
    cores = os.cpu_count() or 1
    return f"{host_cpu()[0]} {model} {numbers}, caches {caches}, {cores} cores, {threads} threads"


@cache
def gpu_fingerprint(index: int) -> str:
    """Name, compute capability, multiprocessors and GiB of a CUDA or ROCm device."""
    facts = torch.cuda.get_device_properties(index)
    memory = round(facts.total_memory / 2**30)
    version = f"{facts.major}.{facts.minor}"
    return f"{facts.name} {version}, {facts.multi_processor_count} processors, {memory} GiB"


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> list[str]:
    """Sizes of the first core's data caches, as Linux says them."""
    found = []
    for at in range(4):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{at}"
        try:
            with open(f"{folder}/type", encoding="ascii") as kind:
                if kind.read().strip() == "Instruction":
                    continue
            with open(f"{folder}/size", encoding="ascii") as size:
                found.append(size.read().strip())
        except OSError:
            continue
    return found
