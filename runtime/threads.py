"""Runs native code on the threads of torch's own OpenMP pool, so that there is no second pool.

Only addresses go through here: what the code computes, and how it divides its work, is its own
business. A forked child runs everything on the calling thread, because libgomp's pool does not
survive a fork and a parallel region in a child hangs.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from tilewright.ir.errors import SettingError
from tilewright.runtime.settings import settings

Region = Callable[[int, int, int, int], object]
Entry = Callable[[int], object]

_ENTRY_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# ctypes functions by address: one prototype serves all kernels, so an address that is used again
# after its kernel is gone still gets the right function.
_MOST_ENTRIES = 4096
_entries: dict[int, Entry] = {}


def num_threads() -> int:
    """Threads of the next kernel: set_num_threads, else TILEWRIGHT_NUM_THREADS, else torch's."""
    return _state.chosen or settings().num_threads or torch.get_num_threads()


def set_num_threads(count: int | None) -> None:
    """Use so many threads from now on; None goes back to the environment's or torch's number."""
    if count is not None and count < 1:
        raise SettingError(f"set_num_threads({count}): a kernel needs at least one thread")
    _state.chosen = count


def run_parallel(fn_address: int, args_address: int, threads: int) -> None:
    """Run ``void fn(void *args)`` once on each of ``threads`` threads (at most) and wait for all.

    The GIL is released meanwhile. Fewer threads may come than asked for: the code claims its work
    from a counter and may not count on their number.
    """
    if threads > 1:
        _state.region(fn_address, args_address, threads, 0)
    else:
        (_entries.get(fn_address) or _entry(fn_address))(args_address)


def pool_name() -> str:
    """What runs the threads: the OpenMP library's path, or the fallback's name."""
    if _state.region is _serial:
        return "the calling thread only (forked child)"
    library = _find_openmp()
    return str(library[0]) if library else "Python threads (no GOMP_parallel found)"


def _entry(fn_address: int) -> Entry:
    if len(_entries) > _MOST_ENTRIES:
        _entries.clear()
    return _entries.setdefault(fn_address, _ENTRY_TYPE(fn_address))


def _first_region(fn_address: int, args_address: int, threads: int, flags: int) -> None:
    """Finds the pool when the first region is run, and takes its own place with it."""
    library = _find_openmp()
    _state.region = library[1] if library else _python_threads
    _state.region(fn_address, args_address, threads, flags)


def _serial(fn_address: int, args_address: int, threads: int, flags: int) -> None:
    """One worker does all the work: the region of a forked child."""
    _entry(fn_address)(args_address)


def _python_threads(fn_address: int, args_address: int, threads: int, flags: int) -> None:
    """Where torch has no libgomp (macOS, Windows): ctypes releases the GIL, but 50 µs a thread."""
    entry = _entry(fn_address)
    helpers: list[threading.Thread] = []
    with suppress(RuntimeError):  # no more threads: those that there are do the work
        for _ in range(threads - 1):
            helpers.append(threading.Thread(target=entry, args=(args_address,)))
            helpers[-1].start()
    interrupted: BaseException | None = None
    try:
        entry(args_address)
    except BaseException as error:
        interrupted = error
    for helper in helpers:
        while helper.is_alive():  # whatever comes: the memory that it works on would be freed
            try:
                helper.join()
            except BaseException as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted


@dataclass
class _State:
    """How a region is run, and the number of threads that the user has set."""

    region: Region = _first_region
    chosen: int | None = None


_state = _State()


def _find_openmp() -> tuple[Path, Region] | None:
    """The library that torch runs on, with its GOMP_parallel(fn, data, threads, flags)."""
    for path in _candidates():
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
        return path, function
    return None


def _candidates() -> Iterator[Path]:
    """Beside torch first; then what the process has loaded, as where torch was built from source.

    LLVM's and Intel's OpenMP libraries offer GOMP_parallel too. A library that is merely installed
    on the machine is no candidate: it would be a second pool.
    """
    torch_folder = Path(torch.__file__).parent
    for folder in (torch_folder / "lib", torch_folder.parent / "torch.libs"):
        yield from sorted(folder.glob("libgomp*.so*"))
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    loaded = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
    for name in ("libgomp", "libomp", "libiomp5"):
        yield from (Path(p) for p in sorted(loaded) if Path(p).name.startswith(name))


def start_over() -> None:
    """For the child of a fork server, which never ran anything in parallel: all threads, although
    this process was forked. Elsewhere a region would hang."""
    _state.region, _state.chosen = _first_region, None


def _after_fork_in_child() -> None:
    used = _state.region is not _first_region
    _state.region, _state.chosen = _serial, 1
    if used:  # torch's own operators hang in the same pool; its data loaders do the same
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
