"""CUDA kernels on the CPU: g++ against ``headers/tilewright_host.h``, threads as fibers.

Everything that generated code does through ``namespace tw`` is checked: races on shared memory,
reads of what nobody wrote, bounds, alignment, barriers and warps that diverge. Compiled code is
kept in the temporary folder under the hash of all that it was made from. Needs no GPU, no CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.backends.locks import Guard
from tilewright.backends.tool import run_tool, why_failed
from tilewright.ir.errors import (
    BackendMissingError,
    BindError,
    DataError,
    KernelAlignmentError,
    KernelBoundsError,
    KernelCompileError,
    KernelDeadlockError,
    KernelDivergenceError,
    KernelFaultError,
    KernelRaceError,
    KernelUninitialisedError,
)

HEADERS = Path(__file__).parent / "headers"
_OPTIONS = ("-std=c++20", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing")
_GAP = 1 << 20  # bytes between arrays: one past the end of one is not in the next
_TEXT = 8192
_KERNEL = re.compile(r"\bTW_KERNEL\((\w+),")
_KEPT_SECONDS = 14 * 24 * 3600

# By the number of `enum Fault` in emulator.h.
_FAULTS: dict[int, type[KernelFaultError | BindError]] = {
    1: KernelRaceError,
    2: KernelUninitialisedError,
    3: KernelBoundsError,
    4: KernelAlignmentError,
    5: KernelDivergenceError,
    6: KernelDeadlockError,
    7: BindError,
}
_SCALARS: dict[str, Any] = {
    "i4": ctypes.c_int32,
    "u4": ctypes.c_uint32,
    "i8": ctypes.c_int64,
    "f4": ctypes.c_float,
    "f8": ctypes.c_double,
}
# Held while the emulator runs: it has one block, in global variables, which no child could take up.
_running = Guard(fork_waits=10.0)


@dataclass(frozen=True)
class TensorMap:
    """An array for a parameter ``TW_TENSOR_MAP``: tiles of ``box`` elements are copied, one size
    per axis of the array (two to five). ``swizzle``: 128, 64 or 32, which is then the bytes of a
    tile's innermost row; or 0. ``shape`` and ``strides`` (in elements, the last 1): of the tensor
    that begins with the array's memory, if it is another."""

    array: np.ndarray
    box: tuple[int, ...]
    swizzle: int = 128
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        size, shape = self.array.itemsize, self.sizes
        row = self.box[-1] * size if self.box else 0
        fits = len(self.box) == len(shape) and 2 <= len(shape) <= 5
        if not fits or not all(1 <= n <= 256 for n in self.box):
            raise BindError(f"a box {self.box} of an array {shape}: 2 to 5 axes, up to 256 each")
        whole = all(s * size % 16 == 0 for s in self.steps[:-1]) and self.steps[-1] == 1
        if not whole or row % 16 or self.swizzle not in (0, row):
            raise BindError(
                f"a box {self.box} of an array {shape} of {size} bytes with a swizzle of "
                f"{self.swizzle}: rows are multiples of 16 bytes, a tile's as long as the swizzle"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shape or self.array.shape

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides in elements."""
        sizes = self.sizes
        return self.strides or tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))

    def structure(self, address: int) -> _TensorMap:
        """``struct TensorMap`` of tilewright_host.h for an array at an address."""
        size = self.array.itemsize
        made = _TensorMap(base=address, element_bytes=size, swizzle=self.swizzle)
        made.dimensions = len(self.box)
        innermost_first = zip(self.sizes[::-1], self.steps[::-1], self.box[::-1], strict=True)
        for i, (n, step, part) in enumerate(innermost_first):
            made.sizes[i], made.strides[i], made.box[i] = n, step * size, part
        return made


Argument = np.ndarray | TensorMap | int | float


class _TensorMap(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_uint64),
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 5),
        ("box", ctypes.c_int32 * 5),
        ("dimensions", ctypes.c_int32),
        ("element_bytes", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
        ("padding", ctypes.c_char * 8),  # to the alignment of 64
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("bytes", ctypes.c_int64))


class _Launch(ctypes.Structure):
    """``struct Launch`` of emulator.h."""

    _fields_ = (
        ("grid", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int32),
        ("fault", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("other_line", ctypes.c_int32),
        ("text", ctypes.c_char_p),
        ("text_bytes", ctypes.c_int64),
        ("matrices", ctypes.c_int64),
        ("conflicts", ctypes.c_int64),
    )


@dataclass(frozen=True)
class HostRun:
    """What a launch did: 8 by 8 matrices that ldmatrix and stmatrix moved, and how many rounds they
    took beyond one each, since rows were in the same banks."""

    matrices: int
    bank_conflicts: int


def run_on_host(
    source: str,
    symbol: str,
    grid: int,
    arguments: Sequence[Argument],
    threads: int,
    shared_bytes: int,
    seed: int = 0,
) -> HostRun:
    """Runs the kernel ``symbol`` of a CUDA C++ text that includes ``tilewright_kernel.h``.

    ``arguments`` are the kernel's, in order: an array of any dtype for a pointer (in C order on the
    device; written back if it is writeable), TensorMap for TW_TENSOR_MAP, numbers for the rest.
    ``seed`` draws the schedule of blocks and threads and the moments at which copies happen. Raises
    KernelFaultError's subclasses for what the kernel does wrong (arrays are then left as they
    were), KernelCompileError, BindError for arguments that do not fit, BackendMissingError without
    g++.
    """
    library = _library(source, symbol)
    held = [a.array if isinstance(a, TensorMap) else a for a in arguments]
    memory = _Memory([a for a in held if isinstance(a, np.ndarray)])
    slots = _slots(library, symbol, arguments, memory)
    launch = _Launch()
    launch.grid, launch.threads, launch.shared_bytes = grid, threads, shared_bytes
    launch.seed = seed & (1 << 64) - 1
    launch.arguments = (ctypes.c_void_p * len(slots))(*map(ctypes.addressof, slots))
    launch.buffers, launch.buffer_count = memory.buffers, len(memory.arrays)
    text = ctypes.create_string_buffer(_TEXT)
    launch.text, launch.text_bytes = ctypes.cast(text, ctypes.c_char_p), _TEXT
    with _running.lock:
        fault = getattr(library, f"{symbol}_on_host")(ctypes.byref(launch))
    if fault:
        lines = [n for n in (launch.line, launch.other_line) if n]
        raise _FAULTS[fault](text.value.decode() + _quoted(source, lines))
    memory.copy_back()
    return HostRun(launch.matrices, launch.conflicts)


class _Memory:
    """Copies of the arrays, far apart in one allocation, each at a multiple of 1,024 bytes."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list({id(array): array for array in arrays}.values())
        arrays = self.arrays
        starts, end = [], _GAP
        for array in arrays:
            starts.append(end)
            end = (end + array.nbytes + _GAP) // 1024 * 1024
        # Pages that nobody touches cost nothing: numpy leaves a large allocation to the system.
        self._storage = np.empty(end + 1024, np.uint8)
        first = -self._storage.ctypes.data % 1024
        self._copies = [
            self._storage[first + start : first + start + array.nbytes]
            for start, array in zip(starts, arrays, strict=True)
        ]
        for copy, array in zip(self._copies, arrays, strict=True):
            copy[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.addresses = {
            id(array): copy.ctypes.data for array, copy in zip(arrays, self._copies, strict=True)
        }
        self.buffers = (_Buffer * max(1, len(self._copies)))(
            *(_Buffer(copy.ctypes.data, copy.nbytes) for copy in self._copies)
        )

    def copy_back(self) -> None:
        for copy, array in zip(self._copies, self.arrays, strict=True):
            if array.flags.writeable:
                array[...] = copy.view(array.dtype).reshape(array.shape)


def _slots(
    library: ctypes.CDLL, symbol: str, arguments: Sequence[Argument], memory: _Memory
) -> list[Any]:
    """One C value per parameter of the kernel."""
    kinds = _signature(library, symbol)
    if len(kinds) != len(arguments):
        raise BindError(
            f"kernel {symbol} has {len(kinds)} parameters ({', '.join(kinds)}), "
            f"{len(arguments)} arguments were given"
        )
    slots: list[Any] = []
    for number, (kind, argument) in enumerate(zip(kinds, arguments, strict=True)):
        if kind == "p" and isinstance(argument, np.ndarray):
            slots.append(ctypes.c_void_p(memory.addresses[id(argument)]))
        elif kind == "map" and isinstance(argument, TensorMap):
            slots.append(argument.structure(memory.addresses[id(argument.array)]))
        elif kind in _SCALARS and not isinstance(argument, np.ndarray | TensorMap):
            slots.append(_SCALARS[kind](argument))
        else:
            found = "an array" if isinstance(argument, np.ndarray) else f"{argument!r:.40}"
            raise BindError(f"kernel {symbol}: parameter {number} is {kind!r}, found {found}")
    return slots


def _signature(library: ctypes.CDLL, symbol: str) -> list[str]:
    function = getattr(library, f"{symbol}_signature")
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode().split()


def _quoted(source: str, numbers: Sequence[int]) -> str:
    lines = source.splitlines()
    shown = [f"\n    {n}: {lines[n - 1].strip()}" for n in numbers if n <= len(lines)]
    return "".join(dict.fromkeys(shown))


# ---- compiling ----------------------------------------------------------------------------------
@cache
def _compiler() -> str:
    found = shutil.which("g++")
    if not found:
        raise BackendMissingError(
            "running CUDA kernels on the host needs g++ (12 or newer): apt-get install g++, or "
            "leave these checks out"
        )
    return found


def compiler_version() -> str:
    """The first line that the C++ compiler says of itself."""
    return run_tool([_compiler(), "--version"]).stdout.partition("\n")[0]


@cache
def _folder() -> Path:
    """Where compiled code is kept: this user's own folder among the temporary ones."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"tilewright-host-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()  # of itself: a link could lead to where others write
    except OSError as error:
        raise DataError(f"{folder} cannot be used ({error}); set TMPDIR to another one") from None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022
    if hasattr(os, "getuid") and not own:
        raise DataError(
            f"{folder} must be a folder that only you may write to, since code in it is run; "
            "remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


@cache
def _headers_hash() -> str:
    digest = hashlib.sha256(_processor().encode())
    for path in sorted(HEADERS.rglob("*")):
        if path.suffix in {".h", ".cpp"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _compile(target: Path, arguments: Sequence[str], what: str) -> Path:
    """Runs g++ unless ``target`` is there; several processes may do so at once."""
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        made = Path(folder) / "made.so"
        command = [_compiler(), *_OPTIONS, *arguments, "-o", str(made)]
        done = run_tool(command)
        if done.returncode:
            raise KernelCompileError(f"g++ does not compile {what}:\n{why_failed(done)}")
        os.replace(made, target)
    return target


@cache
def _emulator() -> Path:
    """The emulator as a shared library, which every kernel's library uses."""
    for old in _folder().iterdir():
        if old.is_file() and old.stat().st_mtime < time.time() - _KEPT_SECONDS:
            old.unlink(missing_ok=True)
    sources = [str(path) for path in sorted((HEADERS / "emulator").glob("*.cpp"))]
    target = _folder() / f"emulator-{_headers_hash()[:24]}.so"
    return _compile(target, ["-O3", "-march=native", "-fno-exceptions", *sources], "the emulator")


@cache
def _library(source: str, symbol: str) -> ctypes.CDLL:
    """All kernels of a text, each with an entry for the launch."""
    emulator = _emulator()
    symbols = _KERNEL.findall(source)
    if symbol not in symbols:
        raise BindError(f"no kernel {symbol} in the text, which has {', '.join(symbols) or 'none'}")
    key = hashlib.sha256(f"{_headers_hash()}\n{source}".encode()).hexdigest()[:24]
    text = _folder() / f"{symbols[0]}-{key}.cu"
    if not text.exists():
        part = text.with_suffix(f".{os.getpid()}.part")
        entries = "\n".join(f"TW_HOST_ENTRY({name})" for name in symbols)
        part.write_text(f"{source}\n{entries}\n", encoding="utf-8")
        os.replace(part, text)
    arguments = ["-O2", "-w", f"-I{HEADERS}", "-x", "c++", str(text), "-x", "none", str(emulator)]
    return ctypes.CDLL(str(_compile(text.with_suffix(".so"), arguments, f"kernel {symbol}")))
