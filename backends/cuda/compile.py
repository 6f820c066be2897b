"""CUDA C++ to machine code without a GPU: by NVRTC's library where there is one, else by nvcc.

NVRTC is called through ctypes: it needs no driver, and no package but its own wheel (the toolkit
and torch's CUDA wheels bring it too). Nothing here keeps or launches what it makes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tilewright.backends.cuda.host import HEADERS
from tilewright.backends.tool import run_tool, why_failed
from tilewright.ir.errors import BackendMissingError, KernelCompileError

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
_OPTIONS = ("-std=c++17", "--diag-suppress=177")  # 177: a function that this kernel does not use
_MISSING = (
    "compiling CUDA kernels needs NVRTC or nvcc: pip install 'tilewright[cuda]', or install "
    "the CUDA toolkit and put nvcc on PATH"
)


def architecture_of(cpu: str) -> str:
    """What to compile for on a chip: with what 9.0 alone has (wgmma) there, or 10.0."""
    return f"{cpu}a" if cpu in ("sm_90", "sm_100") else cpu


def compile_kernel(source: str, architecture: str, symbol: str = "kernel") -> bytes:
    """The cubin of a text that includes ``tilewright_kernel.h``, for ``sm_80``, ``sm_90a``, …

    ``symbol`` only names the kernel in errors. Raises KernelCompileError with the compiler's words,
    BackendMissingError where there is neither NVRTC nor nvcc.
    """
    if not re.fullmatch(r"sm_\d+[af]?", architecture):
        raise KernelCompileError(
            f"kernel {symbol}: no GPU architecture {architecture!r}; one such as "
            f"{', '.join(ARCHITECTURES)}"
        )
    nvrtc = _nvrtc()
    if nvrtc is not None:
        return _with_nvrtc(nvrtc, source, architecture, symbol, "CUBIN")
    return _with_nvcc(source, architecture, symbol, "cubin")


def compile_to_ptx(source: str, architecture: str, symbol: str = "kernel") -> str:
    """The PTX of such a text, for ``sm_80``, …; errors as ``compile_kernel``'s."""
    nvrtc, virtual = _nvrtc(), architecture.replace("sm_", "compute_")
    if nvrtc is not None:
        found = _with_nvrtc(nvrtc, source, virtual, symbol, "PTX")
    else:
        found = _with_nvcc(source, architecture, symbol, "ptx")
    return found.rstrip(b"\0").decode()


def compiler_missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    return None if _nvrtc() is not None or _nvcc() else _MISSING


@cache
def compiler_version() -> str:
    """What compiles here, as kept kernels are known by it; "" where nothing does."""
    nvrtc = _nvrtc()
    if nvrtc is not None:
        return "NVRTC {}.{}".format(*_version(nvrtc))
    nvcc = _nvcc()
    return run_tool([nvcc, "--version"]).stdout.strip().splitlines()[-1] if nvcc else ""


# ---- NVRTC --------------------------------------------------------------------------------------
@cache
def _nvrtc() -> Any:
    """NVRTC's library, or None: the newest whose machine code the driver takes (drivers refuse that
    of a later major version of CUDA), where there is a driver and such a one."""
    newest, driver = None, _driver_version()
    for path in _libraries():
        try:
            # NVRTC opens its built-in functions by name: loaded before, the name is known.
            if isinstance(path, Path):
                for beside in path.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(beside))
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        if driver is None or _version(library)[0] <= driver:
            return library
        newest = newest or library
    return newest


def _version(nvrtc: Any) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _driver_version() -> int | None:
    """The major version of CUDA that the driver is for; None without one."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else version.value // 1000


def _libraries() -> Iterator[Path | str]:
    """Where NVRTC may be, newest first: NVIDIA's wheels (a folder per version since 13), the
    toolkit, the loader's path."""
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        for part in ("cu*/lib", "cuda_nvrtc/lib"):
            yield from sorted(Path(folder).glob(f"{part}/libnvrtc.so.*"), reverse=True)
    yield from sorted(Path("/usr/local/cuda/lib64").glob("libnvrtc.so.*"), reverse=True)
    yield from ("libnvrtc.so.13", "libnvrtc.so.12")


def _with_nvrtc(nvrtc: Any, source: str, architecture: str, symbol: str, what: str) -> bytes:
    program = ctypes.c_void_p()
    options = [f"--gpu-architecture={architecture}", f"--include-path={HEADERS}", *_OPTIONS]
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), f"{symbol}.cu".encode(), 0, None, None
    )
    _expect(nvrtc, made, symbol)
    try:
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), values):
            log = _output(nvrtc, "ProgramLog", program, symbol).rstrip(b"\0").decode().strip()
            raise KernelCompileError(f"NVRTC does not compile kernel {symbol}:\n{log}")
        return _output(nvrtc, what, program, symbol)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _output(nvrtc: Any, what: str, program: ctypes.c_void_p, symbol: str) -> bytes:
    size = ctypes.c_size_t()
    _expect(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), symbol)
    data = ctypes.create_string_buffer(size.value)
    _expect(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, data), symbol)
    return data.raw


def _expect(nvrtc: Any, status: int, symbol: str) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        words = nvrtc.nvrtcGetErrorString(status).decode()
        raise KernelCompileError(f"NVRTC fails on kernel {symbol}: {words}")


# ---- nvcc ---------------------------------------------------------------------------------------
@cache
def _nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _with_nvcc(source: str, architecture: str, symbol: str, what: str) -> bytes:
    nvcc = _nvcc()
    if nvcc is None:
        raise BackendMissingError(_MISSING)
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder) / f"{symbol}.cu", Path(folder) / f"{symbol}.{what}"
        text.write_text(source, encoding="utf-8")
        command = [nvcc, *_OPTIONS, f"-arch={architecture}", f"-{what}", f"-I{HEADERS}"]
        done = run_tool([*command, str(text), "-o", str(out)])
        if done.returncode:
            words = why_failed(done)
            raise KernelCompileError(f"nvcc does not compile kernel {symbol}:\n{words}")
        return out.read_bytes()
