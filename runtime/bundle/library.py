"""A shared library in this process, from bytes that were checked: no one can change them between
check and load.

Linux keeps the bytes in a sealed file of memory, which the loader maps. No compiler, no LLVM.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass, field

from tilewright.ir.errors import BundleError

_SEALS = 0x000F  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
_ADD_SEALS = 1033  # F_ADD_SEALS


@dataclass(frozen=True)
class Library:
    """Loaded code; addresses hold as long as the process does, as a library is never unloaded."""

    name: str
    handle: ctypes.CDLL = field(repr=False)

    def address(self, symbol: str) -> int:
        """Where a function is. BundleError if the library has none of that name."""
        try:
            function = getattr(self.handle, symbol)
        except AttributeError:
            raise BundleError(f"{self.name} has no function {symbol}: it is another one") from None
        return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def load_library(data: bytes, name: str) -> Library:
    """Code from the bytes of a shared library. BundleError if the system does not load it."""
    if not data.startswith(b"\x7fELF\x02\x01"):
        raise BundleError(f"{name} is no shared library of 64 bits")
    try:
        number = os.memfd_create("tilewright-bundle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError) as error:
        raise BundleError(f"cannot load {name}: no memory file on this system ({error})") from None
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
        fcntl.fcntl(number, _ADD_SEALS, _SEALS)
        # Never closed: the loader takes a path that it knows for the library that it has loaded
        # from there, and the next bundle's file would get this number again.
        handle = ctypes.CDLL(f"/proc/self/fd/{number}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        os.close(number)
        raise BundleError(f"the system does not load {name}: {error}") from None
    return Library(name, handle)
