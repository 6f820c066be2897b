"""The calls of the CUDA driver that map memory, through ctypes: no package is needed for them.

Prototypes and structures are those of cuda.h, which keeps them across versions. No torch here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any, ClassVar

from tilewright.ir.errors import BackendMissingError, ExpertError

_PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_MINIMUM = 0  # CU_MEM_ALLOC_GRANULARITY_MINIMUM


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_: ClassVar = [("type", c_int), ("id", c_int)]


class _AllocationFlags(ctypes.Structure):
    """CUmemAllocationProp.allocFlags."""

    _fields_: ClassVar = [
        ("compression_type", ctypes.c_ubyte),
        ("gpu_direct_rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class _Allocation(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_: ClassVar = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("windows_metadata", c_void_p),
        ("flags", _AllocationFlags),
    ]


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_: ClassVar = [("location", _Location), ("flags", c_int)]


_PROTOTYPES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [POINTER(c_void_p)],
    "cuCtxSynchronize": [],
    "cuMemGetAllocationGranularity": [POINTER(c_size_t), POINTER(_Allocation), c_int],
    "cuMemAddressReserve": [POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64],
    "cuMemAddressFree": [c_uint64, c_size_t],
    "cuMemCreate": [POINTER(c_uint64), c_size_t, POINTER(_Allocation), c_uint64],
    "cuMemRelease": [c_uint64],
    "cuMemMap": [c_uint64, c_size_t, c_size_t, c_uint64, c_uint64],
    "cuMemUnmap": [c_uint64, c_size_t],
    "cuMemSetAccess": [c_uint64, c_size_t, POINTER(_Access), c_size_t],
}


class CudaDriver:
    """Virtual memory of one device: ordinal as torch counts. Raises ExpertError with the call."""

    def __init__(self, ordinal: int, library: Any = None) -> None:
        """``library``: what has the driver's functions; libcuda if not given."""
        self._library = _load() if library is None else library
        self._call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(device), ordinal)
        # The context that torch uses; it is kept for the process's life, as torch keeps it.
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context
        where = _Location(_ON_DEVICE, device.value)
        self._allocation = _Allocation(type=_PINNED, location=where)
        self._access = _Access(where, _READ_WRITE)
        size = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(size), byref(self._allocation), _MINIMUM)
        self.granularity = size.value

    def reserve(self, size: int) -> int:
        """Addresses of ``size`` bytes, with no memory."""
        address = c_uint64()
        with self._in_context():
            self._call("cuMemAddressReserve", byref(address), size, 0, 0, 0)
        return address.value

    def free(self, address: int, size: int) -> None:
        """Gives back addresses behind which nothing is mapped."""
        with self._in_context():
            self._call("cuMemAddressFree", address, size)

    def map(self, address: int, size: int) -> int:
        """New memory behind reserved addresses, readable and writable: its handle."""
        handle = c_uint64()
        with self._in_context():
            self._call("cuMemCreate", byref(handle), size, byref(self._allocation), 0)
            try:
                self._call("cuMemMap", address, size, 0, handle, 0)
                try:
                    self._call("cuMemSetAccess", address, size, byref(self._access), 1)
                except ExpertError:
                    self._call("cuMemUnmap", address, size)
                    raise
            except ExpertError:
                self._call("cuMemRelease", handle)
                raise
        return handle.value

    def unmap(self, address: int, size: int, handle: int) -> None:
        """Takes the memory of ``map`` away from its addresses and gives it back."""
        with self._in_context():
            self._call("cuMemUnmap", address, size)
            self._call("cuMemRelease", handle)

    def synchronize(self) -> None:
        """Returns when everything started on the device before is done."""
        with self._in_context():
            self._call("cuCtxSynchronize")

    @contextmanager
    def _in_context(self) -> Iterator[None]:
        """The calling thread may be a new one, without a context, or on another device."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorString(code, byref(text))
            reason = (text.value or b"unknown error").decode()
            raise ExpertError(f"expert memory: {name} failed: {reason} ({code})")


@cache
def _load() -> Any:
    """libcuda with its prototypes; calls through it release the GIL."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendMissingError(
            "expert memory: there is no CUDA driver (libcuda.so.1) here"
        ) from error
    for function, arguments in _PROTOTYPES.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = c_int
    return library
