"""Kernels called with all their memory beside pages that nobody may touch: an access outside ends
the process, and the parent says which call it was.

``python -m tests.guarded`` runs the calls of ``guarded_cases.py``; ``--everything`` all tails.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
PAGE = mmap.PAGESIZE
SIDES = ("after", "before")
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Case:
    """One call: a compiled form, and inputs to be put into guarded memory."""

    name: str
    call: Callable[..., Sequence[torch.Tensor]]
    inputs: tuple[torch.Tensor, ...]


@dataclass
class Guard:
    """Gives memory whose last byte lies before such a page (``after``), or its first behind one."""

    side: str
    held: list[mmap.mmap] = field(default_factory=list)

    def memory(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes], all bits set: what is read beside it inside a page is NaN."""
        pages = -(-nbytes // PAGE)
        made = mmap.mmap(-1, (pages + 2) * PAGE)
        made[:] = b"\xff" * len(made)
        self.held.append(made)
        start = ctypes.addressof(ctypes.c_char.from_buffer(made))
        for page in (0, pages + 1):
            address = ctypes.c_void_p(start + page * PAGE)
            if _LIBC.mprotect(address, ctypes.c_size_t(PAGE), 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = (pages + 1) * PAGE - nbytes if self.side == "after" else PAGE
        return torch.frombuffer(made, dtype=torch.uint8, count=nbytes, offset=offset)

    def empty(self, *shape: Any, dtype: torch.dtype | None = None, **more: Any) -> torch.Tensor:
        """``torch.empty`` of this memory."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = int(np.prod(sizes, dtype=np.int64))
        kind = dtype or torch.get_default_dtype()
        if not count or str(more.get("device", "cpu")) != "cpu":
            return _EMPTY(*shape, dtype=dtype, **more)
        return self.memory(count * kind.itemsize).view(kind).view(sizes)

    def copy(self, given: torch.Tensor) -> torch.Tensor:
        """The same numbers at the same strides."""
        if not given.numel():
            return given
        steps = zip(given.shape, given.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in steps)
        flat = self.memory(span * given.element_size()).view(given.dtype)
        copied = flat.as_strided(given.shape, given.stride())
        copied.copy_(given)
        return copied

    def array(self, shape: Any, dtype: Any = float) -> Any:
        """``np.empty`` of this memory."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.empty(shape, kind)
        return self.memory(count * kind.itemsize).numpy().view(kind).reshape(shape)

    def scratch(self, size: int) -> tuple[int, int, torch.Tensor]:
        """A kernel's scratch memory, exactly as long as it asks for (a multiple of 64 bytes)."""
        owner = self.memory(max(64, size))
        return owner.data_ptr(), size, owner


_EMPTY = torch.empty


class _NumPy:
    """NumPy with another ``empty``, for the module that allocates Numba's results."""

    def __init__(self, empty: Callable[..., Any]) -> None:
        self.empty = empty

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _Nothing(list[Any]):
    """A list that keeps nothing: scratch memory is not used again."""

    def append(self, item: Any) -> None:
        pass


@contextlib.contextmanager
def guarded(guard: list[Guard]) -> Iterator[None]:
    """Results, intermediates and scratch memory come from ``guard[0]`` inside; kernels keep what
    they find when they are made, so that it can be exchanged for another."""
    from tilewright.backends.numba import kernel as numba_kernel
    from tilewright.runtime import kernel

    def empty(*shape: Any, **more: Any) -> torch.Tensor:
        return guard[0].empty(*shape, **more)

    def scratch(size: int) -> tuple[int, int, torch.Tensor]:
        return guard[0].scratch(size)

    def array(*given: Any) -> Any:
        return guard[0].array(*given)

    with (
        mock.patch.object(torch, "empty", empty),
        mock.patch.object(kernel, "_take_scratch", scratch),
        mock.patch.object(kernel, "_free_scratch", _Nothing()),
        mock.patch.object(numba_kernel, "np", _NumPy(array)),
    ):
        yield


def run(cases: Iterator[Case], progress: Path, skip: Sequence[str]) -> int:
    """Runs each case with either side guarded; the file names the one that runs. Says how many."""
    guard, count = [Guard("after")], 0
    number = os.open(progress, os.O_WRONLY | os.O_CREAT)
    with guarded(guard):
        for case in cases:
            if case.name in skip:
                continue
            found = []
            for side in SIDES:
                now = f"{case.name}, guarded {side}".encode().ljust(400) + f"call {count}".encode()
                os.pwrite(number, now, 0)
                found.append(_called(case, guard, side))
                count += 1
            for first, second in zip(*found, strict=True):
                same = torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
                assert same, f"{case.name}: what lies beside its arrays changes its results"
    return count


def _called(case: Case, guard: list[Guard], side: str) -> list[torch.Tensor]:
    """The results of a case, in memory of their own."""
    guard[0] = Guard(side)
    return [x.clone() for x in case.call(*map(guard[0].copy, case.inputs))]


def faults_of(cases: Iterator[Case]) -> list[str]:
    """The calls that touch what they must not, each in a process forked for it: for few cases."""
    guard, found = [Guard("after")], []
    with guarded(guard):
        for case in cases:
            for side in SIDES:
                child = os.fork()
                if not child:
                    _called(case, guard, side)
                    os._exit(0)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                    found.append(f"{case.name}, guarded {side}")
    return found


def child(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """This module in a process of its own, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "tests.guarded", *arguments],
        cwd=ROOT,
        env={**os.environ, "TILEWRIGHT_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run_in_child(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """How many calls a child made, and the calls that ended it. One that ends at a call is started
    again without that one. AssertionError for any other end."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while True:
            skipped = [f"--skip={fault.rsplit(', guarded', 1)[0]}" for fault in faults]
            done = child([f"--progress={progress}", *arguments, *skipped])
            if done.returncode == 0:
                return int(json.loads(done.stdout.splitlines()[-1])["calls"]), faults
            if done.returncode not in (-11, -7) or len(faults) > 20:  # SIGSEGV, SIGBUS
                raise AssertionError(f"{done.returncode}: {done.stdout}{done.stderr}"[-4000:])
            faults.append(progress.read_text()[:400].strip())


def main() -> int:
    """The child, if ``--progress`` names a file; else the parent of one."""
    from tests import guarded_cases

    parser = argparse.ArgumentParser(prog="python -m tests.guarded", description=__doc__)
    parser.add_argument("--set", choices=guarded_cases.SETS, default="fast")
    parser.add_argument("--progress", type=Path)
    parser.add_argument("--skip", action="append", default=[])
    given = parser.parse_args()
    if given.progress is None:
        calls, faults = run_in_child([f"--set={given.set}"])
        print(f"{calls} calls", *(f"outside: {fault}" for fault in faults), sep="\n")
        return 1 if faults else 0
    if given.set == "planted":
        print(json.dumps({"faults": faults_of(guarded_cases.SETS[given.set]())}))
        return 0
    calls = run(guarded_cases.SETS[given.set](), given.progress, given.skip)
    print(json.dumps({"calls": calls}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
