"""What ``tilewright doctor`` says: what is installed, what this machine is, which back ends work.

It looks and never changes anything; a package that fails to import is a line, not an error.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tilewright.backends.cuda.compile import compiler_missing
from tilewright.ir.errors import SettingError
from tilewright.runtime import native, threads
from tilewright.runtime.cache import Cache, CacheStats
from tilewright.runtime.cuda.found import gpu_lines, toolkit_lines
from tilewright.runtime.settings import Settings, in_force, settings


@dataclass(frozen=True)
class Package:
    """A package: ``modules`` are alternatives; ``problem`` says why it is of no use here."""

    name: str
    modules: tuple[str, ...]
    install: str
    version: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Backend:
    """A back end: what it needs, and, if it does not work, why not and what to do."""

    name: str
    use: str
    needs: tuple[str, ...]
    needs_gpu: bool = False
    problem: str = ""

    @property
    def works(self) -> bool:
        """Nothing that it needs is missing."""
        return not self.problem


@dataclass(frozen=True)
class Machine:
    """The CPU as LLVM names it, the features that kernels use, caches by name, GPUs."""

    cpu: str
    features: tuple[str, ...]
    cores: int
    threads: int
    pool: str
    wait_policy: str
    caches: dict[str, str]
    gpus: tuple[str, ...]
    toolkit: tuple[str, ...] = ()


PACKAGES = (
    Package("torch", ("torch",), "pip install torch"),
    Package("numpy", ("numpy",), "pip install numpy"),
    Package("MLIR bindings", ("mlir.ir", "torch_mlir.ir"), "pip install 'tilewright[mlir]'"),
    Package("llvmlite", ("llvmlite.binding",), "pip install llvmlite"),
    Package("numba", ("numba",), "pip install numba"),
    Package("triton", ("triton",), "pip install 'tilewright[triton]'"),
)
BACKENDS = (
    Backend("mlir", "CPU, fast", ("MLIR bindings", "llvmlite")),
    Backend("numba", "CPU, portable", ("numba",)),
    Backend("interpreter", "any, slow: the oracle", ("numpy",)),
    Backend("triton", "NVIDIA and AMD GPUs", ("triton",), needs_gpu=True),
    Backend("cuda", "NVIDIA GPUs", (), needs_gpu=True),
)
FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vnni"),
    *("avx512bf16", "avx512fp16", "avxvnni", "amx-int8", "amx-bf16", "neon", "dotprod", "bf16"),
    *("i8mm", "sve"),
)
# distributions are not always named as the module that one imports
_DISTRIBUTIONS = {"torch_mlir": ("torch-mlir",), "mlir": ("mlir-python-bindings",)}


@dataclass(frozen=True)
class DoctorReport:
    """All of it as data; ``str()`` is the text for people."""

    python: str
    platform: str
    packages: tuple[Package, ...]
    backends: tuple[Backend, ...]
    machine: Machine
    cache: CacheStats | None
    setting_problem: str
    variables: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        data = asdict(self)
        for backend, row in zip(self.backends, data["backends"], strict=True):
            row["works"] = backend.works
        if self.cache:
            data["cache"]["root"] = str(self.cache.root)
        return data

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"Python {self.python}, {self.platform}"
        yield "packages"
        for package in self.packages:
            yield f"  {package.name:<14} {package.problem or package.version}"
        yield "back ends"
        for backend in self.backends:
            state = backend.problem or "works"
            yield f"  {backend.name:<14} {backend.use}: {state}"
        yield from _machine_lines(self.machine)
        if self.cache:
            yield f"kernel cache     {_cache_line(self.cache)}"
        chosen = [f"{name}={value}" for name, value in self.variables.items() if value]
        for i, line in enumerate(chosen or ["the defaults (docs/environment.md lists them)"]):
            yield f"{'' if i else 'settings':<16} {line}"
        if self.setting_problem:
            yield f"{'':<16} {self.setting_problem}"


def doctor() -> DoctorReport:
    """Look at this machine and this installation."""
    packages = tuple(_probe(package) for package in PACKAGES)
    problem = _setting_problem()
    machine = _machine(None if problem else settings())
    return DoctorReport(
        python=platform.python_version(),
        platform=platform.platform(terse=True) + " " + platform.machine(),
        packages=packages,
        backends=tuple(_judge(b, packages, machine.gpus) for b in BACKENDS),
        machine=machine,
        cache=None if problem else Cache().stats(),
        setting_problem=problem,
        variables=in_force(),
    )


def _setting_problem() -> str:
    """A wrong environment variable must not stop the report that would tell of it."""
    try:
        settings()
    except SettingError as error:
        return str(error)
    return ""


def _probe(package: Package) -> Package:
    """The package with its version, or with what is wrong with it."""
    broken = ""
    for module in package.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # whatever a broken installation raises belongs in the report
            broken = f"{module} does not import ({type(error).__name__}: {error})"
            continue
        return replace(package, version=_version(module.partition(".")[0]))
    return replace(package, problem=f"{broken or 'not installed'}: {package.install}")


def _version(module: str) -> str:
    """The version that the module or its distribution states."""
    stated = getattr(importlib.import_module(module), "__version__", None)
    if stated:
        return str(stated)
    for name in _DISTRIBUTIONS.get(module, (module,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _judge(backend: Backend, packages: tuple[Package, ...], gpus: tuple[str, ...]) -> Backend:
    needed = [p for p in packages if p.name in backend.needs and p.problem]
    problems = [f"{p.name} {p.problem}" for p in needed]
    if backend.name == "cuda" and (missing := compiler_missing()):
        problems.append(missing)
    if backend.needs_gpu and not gpus:
        problems.append("torch sees no GPU" if problems else "torch sees no GPU; emits source only")
    return replace(backend, problem="; ".join(problems))


def _machine(options: Settings | None) -> Machine:
    name, features = native.host_cpu()
    there = {f[1:] for f in features.split(",") if f.startswith("+")}
    return Machine(
        cpu=name,
        features=tuple(f for f in FEATURES if f in there),
        cores=_cores(),
        threads=threads.num_threads() if options else 0,
        pool=threads.pool_name(),
        wait_policy=(options.wait_policy if options else "") or "default",
        caches=_caches(),
        gpus=gpu_lines(),
        toolkit=toolkit_lines(),
    )


def _cores() -> int:
    """Cores that this process may use, which a container can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _caches() -> dict[str, str]:
    """Cache sizes of core 0 as Linux states them: ``{"L1 Data": "32K", …}``."""
    found: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level}" if kind == "Unified" else f"L{level} {kind}"] = size
    return found


def _cache_line(cache: CacheStats) -> str:
    if not cache.limit:
        return "off (TILEWRIGHT_CACHE_SIZE is 0)"
    used, limit = cache.bytes / 2**20, cache.limit / 2**20
    return f"{cache.root}: {cache.entries} kernels, {used:.1f} of {limit:.0f} MiB"


def _machine_lines(machine: Machine) -> Iterator[str]:
    yield f"CPU              {machine.cpu}, {machine.cores} cores, {machine.threads} threads"
    yield f"  features       {' '.join(machine.features) or 'none that kernels use'}"
    caches = ", ".join(f"{name} {size}" for name, size in machine.caches.items())
    yield f"  caches         {caches or 'unknown'}"
    yield f"  thread pool    {machine.pool}, wait policy {machine.wait_policy}"
    for i, gpu in enumerate(machine.gpus or ("none that torch can reach",)):
        yield f"{'' if i else 'GPUs':<16} {gpu}"
    for i, tool in enumerate(machine.toolkit):
        yield f"{'' if i else 'GPU tools':<16} {tool}"
