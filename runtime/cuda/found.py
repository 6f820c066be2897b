"""What of CUDA is here, in words, for ``tilewright doctor``: devices, driver, compilers.

Nothing is imported or started that was not asked for; what is missing is said with its use.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import torch

from tilewright.backends.cuda.compile import compiler_missing
from tilewright.backends.gpu.machine_code import disassembler_missing
from tilewright.ir.errors import BackendMissingError, DeviceError
from tilewright.runtime.cuda.driver import Driver
from tilewright.runtime.gpu_targets import LEAST

_TOOLKIT = "/usr/local/cuda/bin"


def gpu_lines() -> tuple[str, ...]:
    """Every GPU that torch can reach: name, compute capability, memory, whether kernels are made
    for it."""
    if not torch.cuda.is_available():
        return ()
    return tuple(map(_gpu, range(torch.cuda.device_count())))


def _gpu(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    line = f"{facts.name}, capability {facts.major}.{facts.minor}, {facts.total_memory >> 30} GiB"
    line += f", {facts.multi_processor_count} multiprocessors"
    old = torch.version.hip is None and facts.major * 10 + facts.minor < LEAST
    return f"{line}: too old for kernels, which need 8.0" if old else line


def toolkit_lines() -> tuple[str, ...]:
    """The driver and what compiles and reads kernels."""
    return tuple(_toolkit())


def _toolkit() -> Iterator[str]:
    yield f"driver: {driver_words()}"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=_TOOLKIT)
    yield f"nvcc: {_version(nvcc) if nvcc else 'not found'}"
    yield f"CUDA C++: {compiler_missing() or 'compiles'}"
    yield f"machine code: {disassembler_missing() or 'can be read (cuobjdump)'}"


def driver_words() -> str:
    """The CUDA driver's version, or why there is none."""
    try:
        version = Driver().version
    except (BackendMissingError, DeviceError) as error:
        reason = error.message.split(":")[0] if isinstance(error, DeviceError) else "not here"
        return f"{reason} (torch was built for {torch.version.cuda or torch.version.hip or 'CPUs'})"
    return f"for CUDA {version // 1000}.{version % 1000 // 10}"


def _version(nvcc: str) -> str:
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{nvcc} does not run ({error})"
    found = re.search(r"release [\d.]+, V([\d.]+)", done.stdout)
    return f"{found.group(1)} ({nvcc})" if found else f"{nvcc}, of unknown version"
