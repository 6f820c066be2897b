"""A GPU that is not there: CPU tensors stand for CUDA ones, and a driver in Python takes launches.

It keeps the real driver's rules (contexts, shared memory, tensor maps' alignment), reads each
launch's parameters out of memory as the kernel's own assembly declares them, and runs the tile
program that the kernel was made of in the NumPy interpreter, at the very addresses it was given.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tilewright.backends.triton.emit import TritonSource
from tilewright.ir.core import Graph
from tilewright.ir.evaluate import evaluate_graph
from tilewright.ir.types import BufferType
from tilewright.runtime.cuda import forms
from tilewright.runtime.cuda.driver import Driver
from tilewright.runtime.cuda.gpus import gpus
from tilewright.runtime.gpu_targets import pretended
from tilewright.runtime.kernel import TORCH_DTYPES

NO_CONTEXT, INVALID, NO_BINARY, NO_MEMORY = 201, 1, 209, 2
_TEXTS = {
    NO_CONTEXT: b"invalid device context",
    INVALID: b"invalid argument",
    NO_BINARY: b"no kernel image is available for execution on the device",
    NO_MEMORY: b"out of memory",
}


@dataclass
class Launch:
    """What one launch told the driver."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: int
    values: list[int | bytes]


@dataclass
class Kernel:
    """Machine code that was loaded: sizes of its parameters, what it was made of."""

    sizes: list[int]
    program: Graph
    source: TritonSource


class FakeDriver:
    """The functions of libcuda that ``runtime/cuda/driver.py`` calls."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.maps: list[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
        self.kernels: list[Kernel] = []
        self.images: dict[bytes, Kernel] = {}  # by machine code
        self.current: int | None = 7  # the calling thread's context
        self.answers: dict[str, int] = {}  # codes that functions give instead of working
        self.shared_bytes, self.threads, self.version = 232448, 1024, 13000
        self.attributes: list[tuple[int, int]] = []
        self.runs = True  # whether launches run their program

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        work = getattr(self, "_" + name)

        def call(*arguments: Any) -> int:
            return self.answers.get(name) or work(*arguments) or 0

        return call

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuGetErrorString(self, code: int, text: Any) -> None:
        text._obj.value = _TEXTS.get(code, b"another error")

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = self.version

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device._obj.value = ordinal

    def _cuDeviceGetAttribute(self, found: Any, which: int, device: int) -> None:
        assert which == 97
        found._obj.value = self.shared_bytes

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = 7

    def _cuCtxSetCurrent(self, context: Any) -> None:
        self.current = context.value

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:
        assert context.value == 7

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:
        pass

    def _cuModuleLoadData(self, module: Any, image: bytes) -> None:
        module._obj.value = 1 + list(self.images).index(image)

    def _cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> None:
        self.kernels.append(list(self.images.values())[module.value - 1])
        function._obj.value = len(self.kernels)

    def _cuFuncGetAttribute(self, found: Any, which: int, function: Any) -> None:
        found._obj.value = {4: 168, 3: 0, 0: self.threads}[which]

    def _cuFuncSetAttribute(self, function: Any, which: int, value: int) -> None:
        self.attributes.append((which, value))

    def _cuFuncSetCacheConfig(self, function: Any, which: int) -> None:
        assert which == 1

    def _cuTensorMapEncodeTiled(
        self, at: int, kind: int, rank: int, address: int, *more: Any
    ) -> int:
        sizes, gaps, box, _, interleave, _, promotion, fill = more
        shape = struct.unpack(f"{rank}Q", ctypes.string_at(sizes, 8 * rank))
        steps = struct.unpack(f"{rank - 1}Q", ctypes.string_at(gaps, 8 * (rank - 1)))
        tile = struct.unpack(f"{rank}I", ctypes.string_at(box, 4 * rank))
        if at % 64 or address % 16 or any(s % 16 for s in steps) or min(shape) < 1:
            return INVALID
        assert (interleave, promotion, fill) == (0, 2, 0)
        self.maps.append((address, shape, steps, tile))
        ctypes.memmove(at, struct.pack("Q", len(self.maps)) + b"\xff" * 120, 128)
        return 0

    def _cuLaunchKernelEx(self, config: Any, function: Any, table: Any, extra: None) -> int:
        if self.current is None:
            return NO_CONTEXT
        assert extra is None and config.value % 64 == 0
        facts = struct.unpack("7I4xQQI4x", ctypes.string_at(config.value, 56))
        assert facts[8:] == (0, 0), "launch attributes that nobody set"
        kernel = self.kernels[function.value - 1]
        count = len(kernel.sizes)
        addresses = struct.unpack(f"{count}Q", ctypes.string_at(table.value, 8 * count))
        values = [_value(at, size) for at, size in zip(addresses, kernel.sizes, strict=True)]
        launch = Launch(facts[0:3], facts[3:6], facts[6], facts[7], values)
        if launch.shared_bytes > 48 << 10 and (8, launch.shared_bytes) not in self.attributes:
            return INVALID
        self.launches.append(launch)
        if self.runs:
            self._run(kernel, values)
        return 0

    def _run(self, kernel: Kernel, values: list[Any]) -> None:
        """Runs the tile program on the memory that the parameters point to."""
        source, program = kernel.source, kernel.program
        types = [p.type for p in program.params if isinstance(p.type, BufferType)]
        pointers, rest = values[: len(types)], values[len(types) :]
        for buffer, tile in source.blocks:
            rank = len(tile)
            number = struct.unpack("Q", rest[0][:8])[0]
            address, shape, steps, _ = self.maps[number - 1]
            assert address == pointers[buffer] and list(shape)[::-1] == rest[1 : 1 + rank]
            size = TORCH_DTYPES[types[buffer].dtype.name].itemsize
            strides = rest[1 + rank : 1 + 2 * rank]
            assert [s * size for s in strides[:-1]] == list(steps)[::-1] and strides[-1] == 1
            rest = rest[1 + 2 * rank :]
        assert rest[-2:] == [0, 0]
        steps = dict(zip(source.strides, rest, strict=False))
        sizes = dict(zip(source.sizes, rest[len(steps) : -2], strict=True))
        tensors = []
        for i, (type_, address) in enumerate(zip(types, pointers, strict=True)):
            shape = [size.evaluate(sizes) for size in type_.shape]
            strides = [steps.get((i, d), 1) for d in range(len(shape))]
            tensors.append(view(address, shape, strides, TORCH_DTYPES[type_.dtype.name]))
        inputs = tensors[: len(tensors) - int(program.attrs["outputs"])]
        arrays = [x.float() if x.dtype == torch.bfloat16 else x for x in inputs]
        results = evaluate_graph(program, *[x.numpy() for x in arrays], sizes=sizes)
        for out, array in zip(tensors[len(inputs) :], results, strict=True):
            out.copy_(torch.from_numpy(array))


def _value(address: int, size: int) -> Any:
    """A kernel's parameter: a number of 4 or 8 bytes, or bytes."""
    data = ctypes.string_at(address, size)
    return struct.unpack({4: "i", 8: "q"}[size], data)[0] if size <= 8 else data


def view(
    address: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Memory at an address as a tensor."""
    if 0 in shape:
        return torch.empty(list(shape), dtype=dtype)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(list(shape), list(strides))


def _parameters(ptx: str) -> list[int]:
    """Bytes of the parameters that a kernel's assembly declares."""
    head = ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]
    return [
        int(array) if array else int(bits) // 8
        for bits, array in re.findall(
            r"\.param .*?\.[bu](\d+) .*?\w+_param_\d+(?:\[(\d+)\])?", head
        )
    ]


@contextmanager
def fake_gpu(capability: int = 90) -> Iterator[FakeDriver]:
    """CPU tensors are a GPU's inside. Programs made before know nothing of it, and those made
    inside must not be used after."""
    driver, real = FakeDriver(), forms.compile_for

    def compile_for(source: TritonSource, program: Graph, *more: Any) -> Any:
        made = real(source, program, *more)
        driver.images[made.asm["cubin"]] = Kernel(_parameters(made.asm["ptx"]), program, source)
        return made

    facts: dict[str, Any] = {
        "place": "is_cpu",
        "driver": Driver(driver),
        "current": lambda: -1,
        "stream": lambda device: 77,
        "empty": torch._C._dynamo.guards._empty_strided_cpu,
        "capability": lambda device: capability,
        "on": lambda device: nullcontext(),
        "capturing": lambda: False,
        "direct": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in facts.items():
            patch.setitem(gpus.__dict__, name, value)
        patch.setattr(forms, "compile_for", compile_for)
        patch.setattr(pretended, "on", True)
        yield driver
