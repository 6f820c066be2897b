"""Running programs of threads as CUDA C++ on the host's emulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tilewright.backends.cuda.emit import CudaSource
from tilewright.backends.cuda.host import TensorMap, run_on_host
from tilewright.ir.core import Graph
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType

NARROW: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


def run_emulated(
    graph: Graph,
    source: CudaSource,
    inputs: Sequence[Any],
    sizes: Mapping[str, int],
    seed: int = 0,
    apart: int = 0,
) -> list[Any]:
    """The outputs of a kernel (16-bit floats as f32); ``apart``: elements between rows of
    inputs."""
    arrays, steps = [], []
    for number, param in enumerate(graph.params):
        type_ = param.type
        assert isinstance(type_, BufferType)
        dtype = NARROW.get(str(type_.dtype), type_.dtype.host)
        if number >= len(inputs):
            array = np.zeros(tuple(s.evaluate(dict(sizes)) for s in type_.shape), dtype)
        else:
            array = np.asarray(inputs[number]).astype(dtype)
            if apart and array.ndim:
                wide = np.zeros((*array.shape[:-1], array.shape[-1] + apart), dtype)
                wide[..., : array.shape[-1]] = array
                array = wide
        arrays.append(array)
        steps.append([s // array.itemsize for s in array.strides])
    strides = [steps[number][dim] for number, dim in source.strides]
    items = 1
    for size, tile in graph.attrs["grid"]:
        items *= -(-Size.of(size).evaluate(dict(sizes)) // tile)
    numbers = [sizes[name] for name in source.sizes]
    maps = []
    for x in source.maps:
        type_ = graph.params[x.buffer].type
        assert isinstance(type_, BufferType)
        shape = tuple(s.evaluate(dict(sizes)) for s in type_.shape)
        described = x.box, x.swizzle, shape, tuple(steps[x.buffer])
        maps.append(TensorMap(arrays[x.buffer], *described))
    arguments = [*arrays, *maps, *strides, *numbers]
    run_on_host(
        source.text, source.symbol, items, arguments, source.threads, source.shared_bytes, seed
    )
    outputs = arrays[len(inputs) :]
    return [x.astype("f4") if x.dtype in NARROW.values() else x for x in outputs]
