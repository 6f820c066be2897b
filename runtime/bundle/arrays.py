"""What a call needs to know of torch tensors and NumPy arrays, without importing torch.

A torch tensor is one only if torch has been imported; NumPy arrays of bf16 are those of ml_dtypes,
or unsigned 16-bit numbers that hold their bits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.errors import BindError
from tilewright.runtime.bundle.manifest import Buffer
from tilewright.runtime.settings import settings

_NUMPY = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}
_TORCH = {name: ours for name, ours in _NUMPY.items()}
Run = Callable[[int, int, int], None]  # function, arguments, threads


@dataclass(frozen=True)
class Seen:
    """An input's facts: our dtype's name, sizes, and strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def unit(self) -> int:
        """The last dimension with stride one (or of at most one element), -1 if none."""
        if self.strides and self.strides[-1] == 1:
            return len(self.strides) - 1
        last = len(self.shape) - 1
        for dim in range(last, -1, -1):
            if self.strides[dim] == 1 or (self.shape[dim] <= 1 and dim == last):
                return dim
        return -1


class TorchArrays:
    """Tensors of torch on the CPU."""

    def __init__(self) -> None:
        import torch  # it is loaded, or there would be no tensors

        from tilewright.runtime import threads

        self.torch, self.threads = torch, threads
        self.dtypes = {ours: getattr(torch, name) for name, ours in _TORCH.items()}
        self.names = {str(dtype): ours for ours, dtype in self.dtypes.items()}

    def key(self, tensors: Sequence[Any]) -> tuple[object, ...]:
        """All that decides a call but addresses."""
        return tuple(
            [(x.dtype, x.shape, x.stride(), x.is_cpu, x.layout, x.is_neg()) for x in tensors]
        )

    def seen(self, where: str, x: Any) -> Seen:
        """Facts of an input. BindError for what no kernel may get."""
        if not isinstance(x, self.torch.Tensor):
            raise BindError(f"{where} must be a torch tensor as others are, it is {_kind(x)}")
        self.place(where, x)
        if x.layout is not self.torch.strided:
            raise BindError(f"{where} must be dense (.to_dense()), the input is {x.layout}")
        if x.is_neg():
            raise BindError(f"{where} must not be a lazily negated view: call .resolve_neg() first")
        found = self.names.get(str(x.dtype))
        if found is None:
            raise BindError(f"{where}: kernels take no {x.dtype}")
        return Seen(found, tuple(x.shape), tuple(x.stride()))

    def place(self, where: str, x: Any) -> None:
        """BindError for a tensor that is not where the kernels run."""
        if not x.is_cpu:
            raise BindError(f"{where} must be on the CPU, the input is on {x.device}")

    def empty(self, shape: tuple[int, ...], dtype: str, like: Sequence[Any]) -> Any:
        """A new contiguous array; ``like``: the call's inputs."""
        return self.torch.empty(shape, dtype=self.dtypes[dtype])

    def address(self, x: Any) -> int:
        return int(x.data_ptr())

    def extremes(self, x: Any, stride: int) -> tuple[Any, Any]:
        """Least and greatest of every ``stride`` elements of the last dimension, as i64."""
        if not x.is_cpu:
            from tilewright.runtime.tables import block_extremes as on_device

            return on_device(x)
        low, high = block_extremes(x.detach().numpy(), stride)
        return self.torch.from_numpy(low), self.torch.from_numpy(high)

    def pool(self) -> tuple[int, Run]:
        """Threads of the next call, and what runs code on them: torch's own pool."""
        return self.threads.num_threads(), self.threads.run_parallel


class NumpyArrays:
    """Arrays of NumPy."""

    def key(self, arrays: Sequence[Any]) -> tuple[object, ...]:
        """All that decides a call but addresses."""
        return tuple([(x.dtype, x.shape, x.strides, x.flags.aligned) for x in arrays])

    def seen(self, where: str, x: Any) -> Seen:
        """Facts of an input. BindError for what no kernel may get."""
        if not isinstance(x, np.ndarray):
            raise BindError(f"{where} must be a NumPy array or a torch tensor, it is {_kind(x)}")
        found, width = _NUMPY.get(x.dtype.name), x.dtype.itemsize
        if x.dtype == np.uint16:
            found = "bf16"
        if found is None or not x.dtype.isnative:
            raise BindError(f"{where}: kernels take no {x.dtype} of this byte order")
        odd = [s for n, s in zip(x.shape, x.strides, strict=True) if n > 1 and (s % width or s < 0)]
        if odd or not x.flags.aligned:
            raise BindError(
                f"{where} lies in memory as no kernel reads it (strides of {x.strides} bytes): "
                "copy it (numpy.ascontiguousarray)"
            )
        return Seen(found, x.shape, tuple(max(0, s) // width for s in x.strides))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Sequence[Any]) -> Any:
        kind: Any = (
            "uint16" if dtype == "bf16" else next(n for n, o in _NUMPY.items() if o == dtype)
        )
        if dtype == "bf16":
            kind = next((x.dtype for x in like if x.dtype.name == "bfloat16"), kind)
        return np.empty(shape, kind)

    def address(self, x: Any) -> int:
        return int(x.ctypes.data)

    def extremes(self, x: Any, stride: int) -> tuple[Any, Any]:
        """Least and greatest of every ``stride`` elements of the last dimension, as i64."""
        return block_extremes(x, stride)

    def pool(self) -> tuple[int, Run]:
        """Threads of the next call, and what runs code on them: torch's pool where it is loaded."""
        if "torch" in sys.modules:
            from tilewright.runtime import threads

            return threads.num_threads(), threads.run_parallel
        return settings().num_threads or len(os.sched_getaffinity(0)), _on_threads


def block_extremes(x: Any, stride: int) -> tuple[Any, Any]:
    """Least and greatest of every ``stride`` elements (fewer at the end) along the last dimension
    [..., n], as i64 [..., ceil(n / stride)] (runtime/tables.py, in NumPy)."""
    x = x.astype(np.uint8) if x.dtype == np.bool_ else x
    blocks = -(-x.shape[-1] // stride)
    if missing := blocks * stride - x.shape[-1]:
        x = np.concatenate([x, np.repeat(x[..., -1:], missing, -1)], -1)
    parts = x.reshape(*x.shape[:-1], blocks, stride)
    return parts.min(-1).astype(np.int64, order="C"), parts.max(-1).astype(np.int64, order="C")


def arrays_of(inputs: Sequence[Any]) -> TorchArrays | NumpyArrays:
    """How to look at these inputs."""
    torch = sys.modules.get("torch")
    if torch is None:
        return _NUMPY_ARRAYS
    kind = torch.Tensor
    for x in inputs:
        if isinstance(x, kind):
            return _made[0] if _made else _torch()
    return _NUMPY_ARRAYS


def require_dtype(where: str, buffer: Buffer, seen: Seen) -> None:
    """BindError for an input of another dtype."""
    if seen.dtype != buffer.dtype:
        raise BindError(f"{where} must have dtype {buffer.dtype}, the input has {seen.dtype}")


_NUMPY_ARRAYS = NumpyArrays()
_made: list[TorchArrays] = []


def _torch() -> TorchArrays:
    if not _made:
        _made.append(TorchArrays())
    return _made[0]


def _kind(x: object) -> str:
    return f"a {type(x).__name__}"


def _on_threads(function: int, arguments: int, threads: int) -> None:
    """Code on so many threads of Python; the GIL is released while it runs."""
    import ctypes

    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    helpers = []
    for _ in range(threads - 1):
        helper = threading.Thread(target=entry, args=(arguments,))
        try:
            helper.start()
        except RuntimeError:  # no more threads here: the code claims its work, so fewer will do
            break
        helpers.append(helper)
    entry(arguments)
    for helper in helpers:
        helper.join()
