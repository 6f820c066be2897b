"""Whether memory can be had, asked beforehand where running out of it would end the process.

LLVM prints "out of memory" and aborts; it offers no way out. So a process asks the system for what
compiling may take, gives it back at once, and refuses in words if it cannot have it. Limits of a
container are not seen so: there the kernel kills a process that passes them.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from tilewright.ir.errors import MemoryLimitError

MIB = 1 << 20
LIBRARY = 256 * MIB  # of addresses, for loading LLVM or MLIR
_COMPILING = 64 * MIB  # measured: 63 MiB for a kernel of 210 kB of MLIR, half of that kept
_PER_CHARACTER = 512  # of MLIR text


def compiling_bytes(mlir: str) -> int:
    """What MLIR and LLVM may take to compile a text."""
    return max(_COMPILING, _PER_CHARACTER * len(mlir))


def require_memory(nbytes: int, what: str) -> None:
    """MemoryLimitError unless so many bytes could be had now; ``what`` needs them."""
    try:
        if hasattr(mmap, "MAP_PRIVATE"):  # what is shared counts for no limit of data
            mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        raise MemoryLimitError(
            f"{what} needs about {nbytes // MIB} MiB of memory, which this process cannot get "
            f"({_limits()}); nothing was changed: raise the limit, or free memory and call again"
        ) from None


def no_memory(what: str, error: BaseException) -> MemoryLimitError:
    """The error of an allocation that failed, with what it was for."""
    words = str(error).rstrip(".") or type(error).__name__
    return MemoryLimitError(f"no memory for {what}: {words} ({_limits()})")


def _limits() -> str:
    """The limits of this process and what it takes now, as far as the system says."""
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
    except (ImportError, OSError):
        return "the system says no more"
    now = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line}
    limits = (
        ("address space, ulimit -v", resource.RLIMIT_AS, "VmSize"),
        ("data, ulimit -d", resource.RLIMIT_DATA, "VmData"),
    )
    found = [
        f"{name}: {int(now.get(field, 0)) >> 10:,} of {soft >> 20:,} MiB"
        for name, limit, field in limits
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]
    return "; ".join(found) or "the process has no limit: the machine's memory is taken"
