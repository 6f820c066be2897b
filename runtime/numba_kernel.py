"""The Numba back end's kernels called with torch tensors, which share their memory with NumPy."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.ir.core import Graph
from tilewright.runtime.family import Call
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.threads import num_threads


def make_numba_kernel(program: Graph) -> Call:
    """A callable for a tile program of one lane. Raises BackendMissingError without Numba."""
    with GENERATORS.lock:
        from tilewright.backends.numba.kernel import NumbaKernel

        kernel = NumbaKernel(program)

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays = kernel(*(_as_array(x) for x in tensors), threads=num_threads())
        return tuple(_as_tensor(a) for a in arrays)

    return call


def _as_array(tensor: torch.Tensor) -> Any:
    plain = tensor.detach()
    return (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()


def _as_tensor(array: Any) -> torch.Tensor:
    if array.dtype == "uint16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)
