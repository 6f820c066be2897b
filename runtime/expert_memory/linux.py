"""Reserved addresses on Linux: a memory file behind the pages that are mapped.

``memfd_create`` has no name in any file system: however the process ends, nothing stays behind.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from functools import cache
from typing import Any

import torch

from tilewright.ir.errors import ExpertError, SettingError
from tilewright.runtime.expert_memory.address_range import AddressRange
from tilewright.runtime.expert_memory.pace import FULL, Pace
from tilewright.runtime.expert_memory.page_table import Piece

_NO_RESERVE = 0x4000  # MAP_NORESERVE, which mmap does not name before Python 3.13
_FIXED = 0x10
_NO_ACCESS = 0  # PROT_NONE
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_MAP_FAILED = ctypes.c_void_p(-1).value
_CHUNK = 256 << 10  # bytes of one write: about 0.1 ms
_STEP = 1 << 20  # bytes of other calls, which take as long


class LinuxRange(AddressRange):
    """Addresses without memory (PROT_NONE), over which pages of a memory file are mapped.

    A page of the range is the page of the file at the same offset. Unmapping puts PROT_NONE back
    and punches a hole into the file, so that the system has the memory again.
    """

    def __init__(self, size: int, page: int | None = None) -> None:
        self.page = page or mmap.PAGESIZE
        if self.page % mmap.PAGESIZE:
            raise SettingError(
                f"expert memory: pages of {self.page} bytes are no multiple of the system's "
                f"{mmap.PAGESIZE}"
            )
        self.size = -(-size // self.page) * self.page
        self.file = os.memfd_create("tilewright-experts", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.file).atexit = False
        os.ftruncate(self.file, self.size)  # a sparse file: no memory yet
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self.address = _mmap(None, self.size, _NO_ACCESS, flags, -1, 0)
        # The addresses live as long as any tensor over them: torch keeps this buffer.
        self._buffer = (ctypes.c_char * self.size).from_address(self.address)
        weakref.finalize(self._buffer, _libc().munmap, self.address, self.size).atexit = False

    @property
    def resident_bytes(self) -> int:
        """What the memory file holds, as the system counts it."""
        return os.fstat(self.file).st_blocks * 512

    def map(self, piece: Piece) -> None:
        flags = mmap.MAP_SHARED | _FIXED
        access = mmap.PROT_READ | mmap.PROT_WRITE
        _mmap(self.address + piece.offset, piece.size, access, flags, self.file, piece.offset)

    def unmap(self, piece: Piece, pace: Pace = FULL) -> None:
        start, stop = piece.offset, piece.offset + piece.size
        # Step by step at first, so that page faults of other threads need not wait for all of it.
        self._advise(start, stop, mmap.MADV_DONTNEED, pace)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE | _FIXED
        _mmap(self.address + start, piece.size, _NO_ACCESS, flags, -1, 0)
        for at, end in pace.steps(start, stop, _STEP):
            if _libc().fallocate(self.file, _PUNCH_HOLE | _KEEP_SIZE, at, end - at):
                raise ExpertError(f"expert memory: giving back memory failed: {_reason()}")

    def write(self, offset: int, data: torch.Tensor, pace: Pace = FULL) -> None:
        # Through the file: no page fault and no clearing of new pages, and the GIL is released.
        view = memoryview(data.cpu().numpy().data)
        for at, stop in pace.steps(0, len(view), _CHUNK):
            done = at
            while done < stop:
                try:
                    done += os.pwrite(self.file, view[done:stop], offset + done)
                except OSError as error:
                    raise ExpertError(f"expert memory: no room for experts: {error}") from error

    def finish(self, start: int, stop: int, pace: Pace = FULL) -> None:
        self._advise(start // mmap.PAGESIZE * mmap.PAGESIZE, stop, _POPULATE_READ, pace)

    def settle(self) -> None:
        """CPU kernels have returned when their call has."""

    def tensor(self, size: int) -> torch.Tensor:
        return torch.frombuffer(self._buffer, dtype=torch.uint8, count=size)

    def _advise(self, start: int, stop: int, advice: int, pace: Pace) -> None:
        """Advice about [start, stop). Older systems do not know all of it."""
        for at, end in pace.steps(start, stop, _STEP):
            if _libc().madvise(self.address + at, end - at, advice):
                if ctypes.get_errno() == errno.EINVAL:
                    return
                raise ExpertError(f"expert memory: madvise({advice}) failed: {_reason()}")


@cache
def _libc() -> Any:
    """The C library with the prototypes used here; its calls release the GIL."""
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number, offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, number, number, number, offset]
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, number]
    libc.fallocate.argtypes = [number, number, offset, offset]
    return libc


def _mmap(address: int | None, size: int, access: int, flags: int, file: int, offset: int) -> int:
    """``mmap``. Raises ExpertError with the system's reason."""
    found: int = _libc().mmap(address, size, access, flags, file, offset)
    if found == _MAP_FAILED:
        raise ExpertError(f"expert memory: mapping {size} bytes failed: {_reason()}")
    return found


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
