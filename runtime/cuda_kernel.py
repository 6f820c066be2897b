"""CUDA C++ kernels called with torch tensors: on a GPU, or on the CPU by the host's emulation.

Back end ``cuda`` compiles a program of threads by NVRTC (or nvcc), keeps the machine code in the
disk cache, and starts it by the driver on the current stream. Back end ``cuda-host`` compiles the
same text with a C++ compiler and runs it thread by thread on CPU tensors: slow, and it refuses
races, reads of what nobody wrote and accesses out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tilewright.backends.cuda.bulk import BulkMap
from tilewright.backends.cuda.compile import architecture_of, compile_kernel, compiler_version
from tilewright.backends.cuda.emit import CudaSource, emit_cuda
from tilewright.backends.cuda.host import TensorMap, run_on_host
from tilewright.ir.core import Graph
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import (
    BackendMissingError,
    DeviceError,
    KernelCompileError,
    LoadingError,
    UnsupportedError,
)
from tilewright.ir.target import Target
from tilewright.passes.to_threads.lower import threads_program
from tilewright.passes.to_threads.roles import roles_program
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule, blocks_of_one_warp
from tilewright.runtime.calls import launched_call_source
from tilewright.runtime.cuda.calls import ADDRESSES, element_bytes
from tilewright.runtime.cuda.descriptions import Descriptions, Key
from tilewright.runtime.cuda.driver import Image, Tiling
from tilewright.runtime.cuda.gpus import gpus, refuse_capture
from tilewright.runtime.cuda.odd import OddBuffers
from tilewright.runtime.cuda.repeat import Bound
from tilewright.runtime.cuda.start import Layout, Start, starter
from tilewright.runtime.family import Call, Variant
from tilewright.runtime.fingerprint import cache_key
from tilewright.runtime.gpu_kernel import GpuKernel, choosable, make_gpu
from tilewright.runtime.native_code import kernel_cache
from tilewright.runtime.report import MachineReport, VariantReport

SYMBOL = "tilewright_kernel"
Started = tuple[Start, Descriptions]
_MAP_TYPES = {8: 0, 16: 1, 32: 2, 64: 4}  # CUtensorMapDataType of plain bits: zeros are zeros


class CudaKernel(GpuKernel):
    """A program on whole blocks as a CUDA kernel that torch tensors are given to.

    ``call`` gives the outputs, newly allocated and contiguous. BindError if the inputs do not fit,
    DeviceError where the GPU cannot take the call; with ``emulated`` KernelFaultError for what a
    kernel does wrong.
    """

    def __init__(
        self, whole: Graph, target: Target, reports: list[MachineReport], emulated: bool = False
    ) -> None:
        self.whole, self.target = whole, target
        self.program, self.reports = threads_program(whole, target), reports
        self.roles, self.why = roles_or_why(whole, target)
        self.sources: dict[tuple[bool, int], CudaSource] = {}
        self.starts: dict[tuple[int, bool, int], Started] = {}
        source = self.source(False, 0)
        self.copied = [x.buffer for x in self.source(True, 0).maps] if self.roles else []
        self.copied_bits = bits(self.copied)
        super().__init__(self.program, source.sizes, "is_cpu" if emulated else gpus.place)
        self.widths = [element_bytes(x) for x in self.signature.params]
        self.odd = OddBuffers(self.widths, source.strides)
        if emulated:
            text = launched_call_source(self.signature, source.strides, self.place)
            self.call = self.compiled(text, empty=torch.empty, launch=self._emulate)
        else:
            self.call = self.direct(source.strides, self.copied, self)

    def source(self, bulk: bool, odd: int) -> CudaSource:
        """The kernel's text, with or without a warp that copies in bulk, for buffers of which
        ``odd`` ones (a bit for each) do not lie at multiples of 16 bytes."""
        program = self.roles if bulk else self.program
        assert program is not None
        if odd:  # how buffers lie that are read one element at once makes no other text
            odd &= bits(self.source(bulk, 0).wide)
        if (bulk, odd) not in self.sources:
            buffers = [i for i in range(len(program.params)) if odd >> i & 1]
            self.sources[bulk, odd] = emit_cuda(program, SYMBOL, buffers)
        return self.sources[bulk, odd]

    # ---- on a GPU

    def start(
        self, device: int, items: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...]
    ) -> None:
        """Starts the kernel on the device's current stream; ``low``: low bits of addresses and of
        strides in bytes; ``keys``: the tensors that may be copied in bulk."""
        odd = self.odd(values, low)
        if keys and not odd & self.copied_bits:
            form = device, True, odd
            start, descriptions = self.starts.get(form) or self._load(*form)
            found = descriptions.find(keys)
            if found is not None:
                start(items, gpus.stream(device), values, found)
                return
        form = device, False, odd
        start, _ = self.starts.get(form) or self._load(*form)
        start(items, gpus.stream(device), values, ())

    def bound(
        self, device: int, values: tuple[int, ...], low: int, keys: tuple[Key, ...]
    ) -> Bound | None:
        """What starts this call again with other addresses (``Starts``)."""
        if low > ADDRESSES:
            return None
        odd = self.odd(values, low)
        bulk = self.starts.get((device, True, odd))
        if bulk is not None and keys and bulk[1].find(keys) is not None:
            return bulk[0], bulk[1].by_address(keys)
        plain = self.starts.get((device, False, odd))
        return None if plain is None else (plain[0], ())

    def _load(self, device: int, bulk: bool, odd: int) -> Started:
        source, used = self.source(bulk, odd), odd & bits(self.source(bulk, 0).wide)
        if used != odd:
            made = self.starts.get((device, bulk, used)) or self._load(device, bulk, used)
        else:
            tilings = [_tiling(x, self.signature.params[x.buffer].dtype) for x in source.maps]
            start = self._loaded(device, source, self._words(bulk, odd), odd)
            made = start, Descriptions(tilings, whole=False)
        self.starts[device, bulk, odd] = made
        return made

    def _fitting(self, device: int, source: CudaSource, odd: int) -> tuple[CudaSource, int]:
        """The text, and its stages: as many as a device's shared memory has room for, one at least.
        Devices of one target differ (compute capability 8.6 and 12.0 have 99 KiB, 8.0 has 163)."""
        stages, room = int(self.program.attrs["stages"]), gpus.driver.shared_bytes(device)
        buffers = [i for i in range(len(self.program.params)) if odd >> i & 1]
        while source.shared_bytes > room and stages > 1 and not source.maps:
            stages -= 1
            fewer = replace(self.whole, attrs={**self.whole.attrs, "stages": stages})
            source = emit_cuda(threads_program(fewer, self.target), SYMBOL, buffers)
        return source, stages

    def _words(self, bulk: bool, odd: int) -> str:
        """A form in words."""
        words = ["bulk copies by a warp of its own" if bulk else "16 bytes at once"]
        if odd and odd == bits(self.source(bulk, 0).wide):
            words = ["one element at once"]
        elif odd:
            names = [p.hint for i, p in enumerate(self.program.params) if odd >> i & 1]
            words.append(f"{', '.join(names)} one element at once")
        why = f" ({self.why})" if self.why and not bulk else ""
        return f"{'; '.join(words)}{why}"

    def _loaded(self, device: int, source: CudaSource, form: str, odd: int) -> Start:
        refuse_capture(self.name)
        capability = gpus.capability(device)
        try:
            source, stages = self._fitting(device, source, odd)
            code = machine_code(source, architecture_of(f"sm_{capability}"))
            image = Image(code, SYMBOL, source.threads, source.shared_bytes)
            loaded = gpus.driver.load(image, device)
        except (KernelCompileError, DeviceError, BackendMissingError) as error:
            raise LoadingError(error.message) from error
        integers, maps = len(source.strides) + len(source.sizes), (0,) * len(source.maps)
        layout = Layout(len(source.pointers), maps, integers, wide=True, nulls=0)
        warps, shared = source.threads // 32, source.shared_bytes
        self.reports.append(
            MachineReport(form, loaded.registers, loaded.local_bytes, shared, warps, stages)
        )
        return starter(gpus.driver, image, loaded, layout, device)

    # ---- on the host

    def _emulate(
        self,
        device: torch.device,
        items: int,
        tensors: tuple[torch.Tensor, ...],
        strides: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> None:
        """Runs the kernel's threads on the CPU."""
        arrays = [memory_of(x) for x in tensors]
        values = *(x.data_ptr() for x in tensors), *strides
        odd = self.odd(values, ADDRESSES + 1)
        source, maps = self.source(False, odd), list[TensorMap]()
        some = all(min(*tensors[i].shape, *tensors[i].stride()) > 0 for i in self.copied)
        if self.copied and not odd & self.copied_bits and some:
            source = self.source(True, odd)
            maps = [
                TensorMap(
                    arrays[x.buffer],
                    x.box,
                    x.swizzle,
                    tuple(tensors[x.buffer].shape),
                    tuple(tensors[x.buffer].stride()),
                )
                for x in source.maps
            ]
        arguments = [*arrays, *maps, *strides, *sizes]
        run_on_host(
            source.text, SYMBOL, items, arguments, source.threads, source.shared_bytes, seed=0
        )


def memory_of(x: torch.Tensor) -> Any:
    """The memory that a tensor's elements lie in, as plain numbers of its width, without a copy."""
    numbers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    size = (
        1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    )
    flat = x.detach().as_strided((size,), (1,))
    return flat.view(numbers).numpy() if size else np.zeros(0, np.uint8)


def roles_or_why(whole: Graph, target: Target) -> tuple[Graph | None, str]:
    """The program with a warp that copies in bulk; None, and why, where there is none."""
    try:
        made = roles_program(whole, target)
        emit_cuda(made, SYMBOL)
    except UnsupportedError as error:
        return None, error.message
    return made, ""


def bits(buffers: Iterable[int]) -> int:
    """A bit for every buffer."""
    return sum(1 << i for i in set(buffers))


def _tiling(x: BulkMap, dtype: DType) -> Tiling:
    """How the driver describes a tensor that is copied in bulk."""
    swizzle = {0: 0, 32: 1, 64: 2, 128: 3}[x.swizzle]
    return Tiling(x.box, swizzle, dtype.bits // 8, _MAP_TYPES[dtype.bits])


def machine_code(source: CudaSource, architecture: str) -> bytes:
    """The cubin of a kernel, from the disk cache if it is there."""
    key = cache_key(source.text, "cuda", compiler_version(), architecture)
    cache = kernel_cache()
    entry = cache.get(key)
    if entry is not None:
        return entry.payload
    cubin = compile_kernel(source.text, architecture, source.symbol)
    cache.put(key, {"kernel": source.symbol, "target": architecture}, cubin)
    return cubin


def own_blocks(variant: Variant, target: Target) -> BlockSchedule | None:
    """Blocks that suit programs of threads better than those of both back ends; None: the same, and
    where others are asked for."""
    info = None if variant.choice else choosable(variant)
    return None if info is None else blocks_of_one_warp(info, target, variant.rows)


def make_cuda(
    variant: Variant,
    target: Target,
    emulated: bool = False,
    schedule: BlockSchedule | None = None,
    reports: list[MachineReport] | None = None,
) -> tuple[Call, VariantReport]:
    """A form of a kernel for a CUDA device, or for the host's emulation of one; with a ``schedule``
    instead of its own choice, and ``reports`` that another form fills, too."""
    schedule = schedule or own_blocks(variant, target)
    return make_gpu(
        variant,
        target,
        "cuda-host" if emulated else "cuda",
        lambda program, found: CudaKernel(program, target, found, emulated).call,
        schedule,
        reports,
    )
