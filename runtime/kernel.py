"""A compiled kernel that is called with torch tensors and gives new ones back.

It may be called from any number of Python threads, and again from within itself (a signal handler,
a finaliser): argument blocks and scratch memory are taken from pools and given back after the call.
Whether strides keep a buffer's ``unit`` promise is for the caller to see to, who chose the kernel.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.dtypes import BF16, F16, F32, DType
from tilewright.ir.errors import BindError, UnsupportedError
from tilewright.ir.sizes import Size, SizeLike, parse_size
from tilewright.ir.types import BufferType
from tilewright.runtime.calls import (
    ARGUMENTS_AT,
    COUNTER_BYTES,
    Signature,
    call_source,
    defined,
    frame_format,
)
from tilewright.runtime.memory_limit import no_memory
from tilewright.runtime.native import NativeFunction
from tilewright.runtime.threads import num_threads, run_parallel

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
FLOATS: dict[torch.dtype, DType] = {  # those that kernels compute with
    TORCH_DTYPES[dtype.name]: dtype for dtype in (F32, F16, BF16)
}
ALIGNMENT = 64  # of scratch memory and of the counters: a cache line

Tensors = tuple[torch.Tensor, ...]
Frame = tuple[memoryview, int]  # an argument block and its address
Scratch = tuple[int, int, torch.Tensor]  # aligned address, usable bytes, what owns them


class Kernel:
    """Native code with the ABI of ``calls.py``, callable with torch tensors on the CPU.

    ``params`` are the inputs and then ``outputs`` outputs; ``sizes`` the size names in the order in
    which the code expects their values; ``grid`` has for every dimension of the work the size and
    how much of it one item does. Size names must follow from the inputs' shapes (BindError).
    """

    def __init__(
        self,
        name: str,
        params: Sequence[BufferType],
        sizes: Sequence[str],
        grid: Sequence[tuple[SizeLike, int]],
        outputs: int,
        scratch_bytes: int,
        native: NativeFunction,
        hints: Sequence[str] = (),
    ) -> None:
        names = tuple(hints) or tuple(f"input{i}" for i in range(len(params) - outputs))
        extents = tuple((_size(size), tile) for size, tile in grid)
        # every worker's part begins on a cache line, so that workers do not share one
        rounded = -(-scratch_bytes // ALIGNMENT) * ALIGNMENT
        self.name = name
        self.native = native
        self.signature = Signature(
            name, tuple(params), names, outputs, tuple(sizes), extents, rounded
        )
        self.source = call_source(self.signature, self.otherwise())
        self._frames: list[Frame] = []
        self.call = self._compile()

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, newly allocated and contiguous. BindError if the inputs do not fit."""
        return self.call(*tensors)

    def __repr__(self) -> str:
        return f"Kernel({self.name}: {', '.join(map(str, self.signature.params))})"

    def otherwise(self) -> Sequence[str]:
        """Statements of a call that may return what is computed in another way: they know the
        ``kernel``, its ``tensors``, ``items`` of work and ``workers``."""
        return ()

    def _compile(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """The Python function of ``calls.call_source`` with the names that it uses."""
        names: dict[str, Any] = {
            "strided": torch.strided,
            "empty": torch.empty,
            "cpu": torch.device("cpu"),
            "complain": self._complain,
            "no_room": self._no_room,
            "solve": self.signature.solve,
            "check_memory": self._check_memory,
            "num_threads": num_threads,
            "kernel": self,
            "take_scratch": _take_scratch,
            "give_scratch": _free_scratch.append,
            "scratch": (0, 0),
            "take_frame": self._take_frame,
            "give_frame": self._frames.append,
            "write": struct.Struct(frame_format(self.signature)).pack_into,
            "run": run_parallel,
            "function": self.native.address,
        }
        for i, type_ in enumerate(self.signature.params):
            names[f"dtype{i}"] = _torch_dtype(self.name, type_)
        return defined(self.source, f"call of kernel {self.name}", "call", names)

    def _take_frame(self) -> Frame:
        try:
            return self._frames.pop()
        except IndexError:
            return _new_frame(ARGUMENTS_AT + 8 * self.signature.arguments)

    def _check_memory(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """BindError if a tensor that is not empty has no memory: the native code would crash."""
        for i, tensor in enumerate(tensors):
            if tensor.numel() and not tensor.data_ptr():
                given = i < len(self.signature.inputs)
                what = f"%{self.signature.hints[i]}" if given else "an output"
                kind = f"it is a {type(tensor).__name__} without memory"
                raise BindError(f"{self.name}: {what} must be a real tensor, {kind}")

    def _no_room(self, error: Exception, shapes: tuple[tuple[int, ...], ...]) -> NoReturn:
        """MemoryLimitError for outputs of these shapes, which could not be allocated."""
        outputs = self.signature.params[len(self.signature.inputs) :]
        texts = [f"{p.dtype}{list(shape)}" for p, shape in zip(outputs, shapes, strict=True)]
        nbytes = sum(
            math.prod(shape) * _torch_dtype(self.name, p).itemsize
            for p, shape in zip(outputs, shapes, strict=True)
        )
        _free_scratch.clear()  # what calls have left may be what is missing next time
        what = f"the results of {self.name}, {', '.join(texts)}, {nbytes:,} bytes"
        raise no_memory(what, error) from error

    def _complain(self, tensors: tuple[object, ...]) -> NoReturn:
        refuse(self.name, self.signature, "is_cpu", tensors)


_PLACES = {"is_cpu": "the CPU", "is_cuda": "a GPU"}


def refuse(name: str, signature: Signature, place: str, tensors: tuple[object, ...]) -> NoReturn:
    """Finds out what a call's function saw only as "does not fit", and says it: BindError.

    ``place``: what all inputs must be, ``is_cpu`` or ``is_cuda``."""
    wanted = len(signature.inputs)
    if len(tensors) != wanted:
        names = ", ".join(f"%{h}" for h in signature.hints[:wanted])
        raise BindError(f"{name} takes {wanted} inputs ({names}), {len(tensors)} given")
    shapes = [
        _checked_shape(f"%{hint}: {type_}", TORCH_DTYPES[str(type_.dtype)], place, tensor)
        for hint, type_, tensor in zip(signature.hints, signature.inputs, tensors, strict=False)
    ]
    _require_one_device(name, signature.hints, tensors)
    bind_sizes(signature.graph(), shapes)
    raise AssertionError(f"the call of {name} refuses {shapes}, but they fit")


def _require_one_device(name: str, hints: Sequence[str], tensors: tuple[object, ...]) -> None:
    """BindError if inputs are on several devices."""
    devices = [x.device for x in tensors if isinstance(x, torch.Tensor)]
    for hint, device in zip(hints, devices, strict=False):
        if device != devices[0]:
            raise BindError(
                f"{name}: %{hint} is on {device} and %{hints[0]} on {devices[0]}; a kernel runs on "
                f"one device: move it (x.to({str(devices[0])!r}))"
            )


def _checked_shape(where: str, dtype: torch.dtype, place: str, tensor: object) -> tuple[int, ...]:
    """The shape of an input whose dtype and place are right."""
    if not isinstance(tensor, torch.Tensor):
        raise BindError(f"{where} must be a torch tensor, the input is a {type(tensor).__name__}")
    if tensor.dtype is not dtype:
        raise BindError(f"{where} must have dtype {dtype}, the input has {tensor.dtype}")
    if not getattr(tensor, place):
        raise BindError(f"{where} must be on {_PLACES[place]}, the input is on {tensor.device}")
    if tensor.layout is not torch.strided:
        raise BindError(f"{where} must be dense (.to_dense()), the input is {tensor.layout}")
    if tensor.is_neg():
        raise BindError(f"{where} must not be a lazily negated view: call .resolve_neg() first")
    return tuple(tensor.shape)


def _size(size: SizeLike) -> Size:
    return parse_size(size) if isinstance(size, str) else Size.of(size)


def _torch_dtype(name: str, type_: BufferType) -> torch.dtype:
    dtype = TORCH_DTYPES.get(str(type_.dtype))
    if dtype is None:
        raise UnsupportedError(f"{name}: torch has no tensors of {type_.dtype} ({type_})")
    return dtype


def _new_frame(size: int) -> Frame:
    memory = (ctypes.c_char * (size + ALIGNMENT))()
    offset = -ctypes.addressof(memory) % ALIGNMENT
    return memoryview(memory)[offset : offset + size], ctypes.addressof(memory) + offset


# Scratch of all kernels, last used first so that it is warm: as many as calls ever ran at once.
_free_scratch: list[Scratch] = []


def _take_scratch(size: int) -> Scratch:
    """Scratch memory of at least so many bytes, its contents arbitrary."""
    try:
        scratch = _free_scratch.pop()
    except IndexError:
        return _new_scratch(size)
    return scratch if scratch[1] >= size else _new_scratch(size)


def _new_scratch(size: int) -> Scratch:
    try:
        owner = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device="cpu")
    except (RuntimeError, MemoryError) as error:
        _free_scratch.clear()  # what other calls have left may be what is missing next time
        what = f"the scratch memory of a kernel's threads, {size:,} bytes"
        raise no_memory(what, error) from error
    offset = -owner.data_ptr() % ALIGNMENT
    return owner.data_ptr() + offset, size, owner


assert COUNTER_BYTES % ALIGNMENT == 0
