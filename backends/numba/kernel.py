"""A kernel of the Numba back end, called with NumPy arrays.

Contract for who has other tensors (``runtime`` adapts torch's): arrays share memory with them, any
shape and strides, in these NumPy dtypes:

    bf16            uint16 or int16 bits   torch: t.view(torch.int16).numpy()
    f16             float16, or its bits   torch: t.numpy()
    bool            bool, or uint8 0 / 1   torch: t.numpy()
    all others      the dtype itself       torch: t.numpy()

Outputs come as uint16 (bf16), float16, bool, or the dtype itself. torch is never imported here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.backends.numba.build import build
from tilewright.backends.numba.emit import emit_source
from tilewright.backends.numba.registers import memory_dtype
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import BindError
from tilewright.ir.evaluate_tile import grid_of
from tilewright.ir.types import BufferType

Array = npt.NDArray[Any]
CHUNKS_PER_THREAD = 4
_ACCEPTED = {
    "bf16": ("uint16", "int16"),
    "f16": ("float16", "uint16", "int16"),
    "bool": ("bool", "uint8"),
}


class NumbaKernel:
    """A tile program of one lane as compiled loops. Compiles when made; any thread may call it.

    ``graph`` is lowered for the target ``scalar``; ``source`` is the generated Python text.
    """

    def __init__(self, graph: Graph, symbol: str = "kernel") -> None:
        self.graph = graph
        self.source = emit_source(graph, symbol)
        self.function = build(self.source, symbol)
        outputs = int(graph.attrs["outputs"])
        self.inputs = graph.params[: len(graph.params) - outputs]
        self.outputs = graph.params[len(self.inputs) :]
        self._compile()

    def __call__(
        self,
        *arrays: Array,
        sizes: Mapping[str, int] | None = None,
        threads: int | None = None,
    ) -> tuple[Array, ...]:
        """The outputs, newly allocated and contiguous.

        ``sizes`` gives size names that follow from no input; at most ``threads`` threads work
        (None: one per processor), the results do not depend on it. Raises BindError if the inputs
        do not fit. An input without stride one where the program expects it is copied.
        """
        values = self.bind(arrays, sizes)
        made = []
        for param in self.outputs:
            type_ = _buffer(param)
            shape = tuple(size.evaluate(values) for size in type_.shape)
            made.append(np.empty(shape, _accepted(type_.dtype)[0]))
        self.run(arrays, made, values, threads)
        return tuple(made)

    def bind(
        self, arrays: Sequence[Array], sizes: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Values of all size names from the inputs' shapes; BindError if they do not fit."""
        graph = self.graph
        shell = Graph(graph.level, graph.name, graph.sizes, Region(self.inputs, ()), graph.attrs)
        values = bind_sizes(shell, [a.shape for a in arrays], dict(sizes or {}))
        for param, array in zip(self.inputs, arrays, strict=True):
            _check_dtype(param, array)
        return values

    def run(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        sizes: Mapping[str, int],
        threads: int | None = None,
    ) -> None:
        """Writes the outputs into given arrays, of stride one where the program has it.

        Shapes are the caller's business (``bind`` checks those of inputs), they are not checked.
        """
        arguments: list[Any] = [sizes[name] for name in self.graph.sizes]
        for param, array in zip(self.inputs, inputs, strict=True):
            arguments += _flat(_usable(param, array), _buffer(param))
        for param, array in zip(self.outputs, outputs, strict=True):
            _check_dtype(param, array)
            if not _fits(array, _buffer(param)):
                rule = (
                    "must be aligned, with strides that are not negative, one in its unit dimension"
                )
                raise BindError(f"%{param.hint}: {param.type} {rule} ({array.strides} bytes given)")
            arguments += _flat(array, _buffer(param))
        total = 1
        for extent in grid_of(self.graph, dict(sizes)):
            total *= extent
        spread(lambda lo, hi: self.function(lo, hi, *arguments), total, threads or _processors())

    def _compile(self) -> None:
        """One call for no items, with the types of all later calls."""
        arguments: list[Any] = [1] * len(self.graph.sizes)
        for param in self.graph.params:
            type_ = _buffer(param)
            arguments += [np.empty(0, memory_dtype(type_.dtype)), *[0] * len(type_.shape)]
        self.function(0, 0, *arguments)


def _buffer(param: Value) -> BufferType:
    assert isinstance(param.type, BufferType)
    return param.type


# ---- arrays


class _Memory:
    """Memory from an array's first element to its last, as a one-dimensional array."""

    def __init__(self, owner: Array, count: int, dtype: np.dtype[Any]) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (owner.__array_interface__["data"][0], False),
            "shape": (count,),
            "typestr": dtype.str,
            "version": 3,
        }


def _flat(array: Array, type_: BufferType) -> list[Any]:
    """A buffer's arguments: its memory, then its strides in elements."""
    dtype = memory_dtype(type_.dtype)
    strides = [stride // array.itemsize for stride in array.strides]
    if not array.size:
        return [np.empty(0, dtype), *strides]
    reach = sum((n - 1) * stride for n, stride in zip(array.shape, strides, strict=True))
    return [np.asarray(_Memory(array, reach + 1, dtype)), *strides]


def _fits(array: Array, type_: BufferType) -> bool:
    """True if the generated code can work on the array where it lies."""
    whole = all(s >= 0 and s % array.itemsize == 0 for s in array.strides)
    unit = type_.unit
    promised = unit < 0 or array.shape[unit] <= 1 or array.strides[unit] == array.itemsize
    return bool(whole and promised and array.flags.aligned) or not array.size


def _usable(param: Value, array: Array) -> Array:
    return array if _fits(array, _buffer(param)) else np.array(array, order="C")


def _accepted(dtype: DType) -> tuple[str, ...]:
    """NumPy dtypes that an array of a dtype may have, the one of outputs first."""
    return _ACCEPTED.get(dtype.name, (str(memory_dtype(dtype)),))


def _check_dtype(param: Value, array: Array) -> None:
    accepted = _accepted(_buffer(param).dtype)
    if array.dtype not in [np.dtype(name) for name in accepted]:
        wanted = " or ".join(accepted)
        raise BindError(f"%{param.hint}: {param.type} must come as {wanted}, not {array.dtype}")


# ---- threads

_pools: list[ThreadPoolExecutor] = []


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pool() -> ThreadPoolExecutor:
    """The helpers of all kernels: threads start when first needed and then wait."""
    if not _pools:
        _pools.append(ThreadPoolExecutor(max(32, _processors()), "tilewright-numba"))
    return _pools[0]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def spread(work: Callable[[int, int], object], total: int, threads: int) -> None:
    """``work(lo, hi)`` for pieces of 0 … total on ``threads`` threads, the caller among them."""
    threads = min(threads, total)
    if threads <= 1:
        if total:
            work(0, total)
        return
    size = max(1, total // (threads * CHUNKS_PER_THREAD))
    starts = deque(range(0, total, size))

    def worker() -> None:
        while True:
            try:
                lo = starts.popleft()
            except IndexError:
                return
            work(lo, min(lo + size, total))

    helpers = [_pool().submit(worker) for _ in range(threads - 1)]
    try:
        worker()
    finally:
        for helper in helpers:
            helper.cancel()
    for helper in helpers:
        if not helper.cancelled():
            helper.result()
