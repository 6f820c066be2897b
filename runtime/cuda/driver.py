"""The calls of the CUDA driver that load and start kernels, through ctypes.

Prototypes and structures are those of cuda.h, which keeps them across versions. No torch here.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, NoReturn

from tilewright.ir.errors import BackendMissingError, DeviceError
from tilewright.runtime.locks import Guard

NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
_OLD_DRIVER = (
    200,
    209,
    218,
    222,
    300,
)  # image, no binary, PTX: invalid, of a newer version, source
_OUT_OF_MEMORY = 2
_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_REGISTERS, _LOCAL_BYTES, _MOST_THREADS = 4, 3, 0  # CU_FUNC_ATTRIBUTE_…
_SHARED_OPT_IN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_PLAIN_SHARED = 48 * 1024  # what a block may have without asking
_PREFER_SHARED = 1  # CU_FUNC_CACHE_PREFER_SHARED
MAP_BYTES = 128  # sizeof(CUtensorMap)
_MAP_ALIGNMENT = 64

_PROTOTYPES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [POINTER(c_void_p)],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuFuncGetAttribute": [POINTER(c_int), c_int, c_void_p],
    "cuFuncSetAttribute": [c_void_p, c_int, c_int],
    "cuFuncSetCacheConfig": [c_void_p, c_int],
    "cuTensorMapEncodeTiled": [
        *(c_void_p, c_int, c_uint, c_uint64),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, c_int, c_int, c_int),
    ],
}


@dataclass(frozen=True)
class Image:
    """Machine code of one kernel: a cubin, its symbol, threads and dynamic shared memory of a
    block."""

    cubin: bytes
    symbol: str
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class Loaded:
    """A kernel on one device: its handle, and the registers and local bytes of a thread."""

    function: int
    registers: int
    local_bytes: int


@dataclass(frozen=True)
class Tiling:
    """How the bulk copy engine cuts one tensor: a copy's shape, and what the compiler chose."""

    block: tuple[int, ...]
    swizzle: int
    element_bytes: int
    element_type: int  # CUtensorMapDataType


class Driver:
    """The driver of this process. Raises BackendMissingError without one, DeviceError for what it
    refuses. Devices are numbered as torch numbers them."""

    def __init__(self, library: Any = None) -> None:
        """``library``: what has the driver's functions; libcuda if not given."""
        self.library = _load() if library is None else library
        # four pointers, given as ctypes objects that the caller keeps: the quickest foreign call
        self.launch = self.library.cuLaunchKernelEx
        self._contexts: dict[int, tuple[int, c_void_p]] = {}
        self._guard = Guard()
        self._call("start the CUDA driver", "cuInit", 0)
        version = c_int()
        self._call("read the driver's version", "cuDriverGetVersion", byref(version))
        self.version = version.value

    def load(self, image: Image, device: int) -> Loaded:
        """The kernel on a device, kept for the process's life."""
        what = f"load the kernel {image.symbol}"
        _, context = self._context(device)
        module, function = c_void_p(), c_void_p()
        room = self.shared_bytes(device)
        if image.shared_bytes > room:
            raise DeviceError(
                f"{image.symbol} needs {image.shared_bytes} bytes of shared memory, a block on "
                f"this GPU has {room}: choose a schedule with smaller blocks or fewer stages"
            )
        self._call(what, "cuCtxPushCurrent_v2", context)
        try:
            self._call(what, "cuModuleLoadData", byref(module), image.cubin)
            name = image.symbol.encode()
            self._call(what, "cuModuleGetFunction", byref(function), module, name)
            if image.shared_bytes > _PLAIN_SHARED:
                self._call(what, "cuFuncSetCacheConfig", function, _PREFER_SHARED)
                self._call(what, "cuFuncSetAttribute", function, _SHARED_BYTES, image.shared_bytes)
            registers, local, most = (
                self._attribute(function, which)
                for which in (_REGISTERS, _LOCAL_BYTES, _MOST_THREADS)
            )
        finally:
            self._call(what, "cuCtxPopCurrent_v2", byref(c_void_p()))
        if image.threads > most:
            raise DeviceError(
                f"{image.symbol}: a block has {image.threads} threads of {registers} registers, "
                f"this GPU takes {most}: choose a schedule with fewer warps"
            )
        assert function.value is not None
        return Loaded(function.value, registers, local)

    def shared_bytes(self, device: int) -> int:
        """What a block may have of a device's shared memory."""
        found, (ordinal, _) = c_int(), self._context(device)
        self._call(
            "ask for shared memory", "cuDeviceGetAttribute", byref(found), _SHARED_OPT_IN, ordinal
        )
        return found.value

    def _attribute(self, function: c_void_p, which: int) -> int:
        found = c_int()
        self._call("ask for a kernel's size", "cuFuncGetAttribute", byref(found), which, function)
        return found.value

    def set_current(self, device: int) -> None:
        """Makes a device's context the calling thread's: a new thread has none."""
        self._call("enter the GPU's context", "cuCtxSetCurrent", self._context(device)[1])

    def _context(self, device: int) -> tuple[int, c_void_p]:
        """The driver's number of a device, and the context that torch uses, too."""
        with self._guard.lock:
            if device not in self._contexts:
                ordinal, context = c_int(), c_void_p()
                what = f"reach GPU {device}"
                self._call(what, "cuDeviceGet", byref(ordinal), device)
                self._call(what, "cuDevicePrimaryCtxRetain", byref(context), ordinal)
                self._contexts[device] = ordinal.value, context
            return self._contexts[device]

    def tensor_map(
        self, tiling: Tiling, address: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> bytes:
        """What the bulk copy engine needs to know of a tensor, strides in elements: 128 bytes.

        As Triton's own launcher encodes it (backends/nvidia/driver.c), CUTLASS's correction for
        small tensors on drivers up to 13.1 included.
        """
        rank = len(shape)
        memory = (ctypes.c_char * (MAP_BYTES + _MAP_ALIGNMENT))()
        start = ctypes.addressof(memory)
        at = start + (-start % _MAP_ALIGNMENT)
        steps = [tiling.element_bytes, *(s * tiling.element_bytes for s in reversed(strides[:-1]))]
        sizes = (c_uint64 * rank)(*reversed(shape))
        gaps = (c_uint64 * rank)(*steps[1:], steps[-1] * shape[0])
        box = (c_uint * rank)(*reversed(tiling.block))
        ones = (c_uint * rank)(*([1] * rank))
        no_interleave, promote_to_128_bytes, fill_with_zeros = 0, 2, 0
        self._call(
            f"describe a tensor of shape {shape} and strides {strides} to the copy engine",
            "cuTensorMapEncodeTiled",
            *(at, tiling.element_type, rank, address),
            *(ctypes.addressof(x) for x in (sizes, gaps, box, ones)),
            *(no_interleave, tiling.swizzle, promote_to_128_bytes, fill_with_zeros),
        )
        made = bytearray(ctypes.string_at(at, MAP_BYTES))
        last = sum((n - 1) * step for n, step in zip(reversed(shape), steps, strict=True))
        if self.version <= 13010 and last + 1 < 128 * 1024:
            made[10] &= ~(1 << 5)  # bit 21 of the second 64-bit word
        return bytes(made)

    def _call(self, what: str, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            self.refuse(code, what)

    def refuse(self, code: int, what: str) -> NoReturn:
        """DeviceError for a code that is not 0."""
        text = c_char_p()
        self.library.cuGetErrorString(code, byref(text))
        reason = (text.value or b"unknown error").decode()
        version = getattr(self, "version", 0)
        driver = (
            f"driver for CUDA {version // 1000}.{version % 1000 // 10}" if version else "driver"
        )
        advice = ""
        if code in _OLD_DRIVER:
            advice = f"; the {driver} cannot run it: update the NVIDIA driver, or keep the tensors "
            advice += "on the CPU"
        elif code == _OUT_OF_MEMORY:
            advice = "; the GPU has no memory left: free some (torch.cuda.empty_cache())"
        raise DeviceError(f"could not {what}: {reason} (CUDA error {code}){advice}")


def _load() -> Any:
    """libcuda with its prototypes; calls through it release the GIL."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendMissingError(
            "kernels for GPUs need NVIDIA's driver, and there is no libcuda.so.1 here: install "
            f"the driver, or keep the tensors on the CPU ({error})"
        ) from error
    for function, arguments in _PROTOTYPES.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = c_int
    library.cuLaunchKernelEx.restype = c_int
    return library
