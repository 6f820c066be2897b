"""What tests of faults share: kernels whose results are exact, children that fork off, and mounts
that only a child sees."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tilewright

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
_ROWS = """graph {name}<N, M>(%x: tensor<N x M x f32>) {{
  %c = math.const {{value = {factor}.0, type = tensor<f32>}}
  %y = math.mul %x, %c
  %sum = tensor.reduce %y {{kind = "sum", axis = 1}}
  return %sum
}}"""
_numbers = itertools.count(os.getpid() % 1000 + 2)  # so that no other run has cached the kernel


class Rows:
    """A kernel that nobody has compiled before: the sums of rows times a number. Inputs are small
    whole numbers, so that no order of the sums changes a bit."""

    def __init__(self) -> None:
        self.factor = next(_numbers)
        text = _ROWS.format(name=f"rows_{self.factor}", factor=self.factor)
        self.program = tilewright.Program(tilewright.parse(text))
        assert self.program.supported

    def wrong(self, rows: int = 50) -> bool:
        """Calls it, from whatever thread or process."""
        x = (torch.arange(rows * 37) % 11).float().view(rows, 37)
        (found,) = self.program(x)
        # NumPy, as torch's own operators may hang in a forked child
        return not bool((found.numpy() == x.numpy().sum(1) * self.factor).all())


def in_child(work: Callable[[], object], seconds: int = 100) -> int:
    """Runs it in a forked child: 0, 1 after an exception, or minus the signal that ended it."""
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)  # a hang ends so
        work()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


# ---- mounts
_NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
_PRIVATE, _BIND, _REMOUNT, _READ_ONLY = 1 << 18 | 1 << 14, 1 << 12, 1 << 5, 1


def own_mounts() -> None:
    """From now on this process' mounts are its own. OSError where it may not have any."""
    _system("unshare", _NEW_NAMESPACE)
    _mount(None, "/", None, _PRIVATE, None)


def mount_small(folder: Path, size: str) -> None:
    """An empty file system of so many bytes in a folder's place."""
    _mount(b"none", str(folder), b"tmpfs", 0, f"size={size},mode=700".encode())


def mount_read_only(folder: Path) -> None:
    """The same folder; nobody can write to it, the superuser neither."""
    _mount(str(folder).encode(), str(folder), None, _BIND, None)
    _mount(None, str(folder), None, _BIND | _REMOUNT | _READ_ONLY, None)


def _mount(
    source: bytes | None, target: str, kind: bytes | None, flags: int, data: bytes | None
) -> None:
    _system("mount", source, target.encode(), kind, ctypes.c_ulong(flags), data)


def _system(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def can_mount() -> bool:
    """Whether a child may have mounts of its own (the superuser outside of most containers)."""
    if not sys.platform.startswith("linux"):
        return False
    child = os.fork()
    if not child:
        try:
            own_mounts()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
