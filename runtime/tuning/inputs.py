"""Inputs for a trial: random values in the shapes and memory order that were asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.ir.core import Graph
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.types import TensorType
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.tuning.task import TensorShape

SEED = 20261126
FEW = 8  # different integers that are no packed codes: documents, segments, classes
WORD = 1 << 31
BYTE_SCALES = (96, 128)  # bytes that are scales: numbers near one in every 8-bit float


def random_inputs(
    graph: Graph, shapes: Sequence[TensorShape], device: str = "cpu", seed: int = SEED
) -> list[torch.Tensor]:
    """The inputs of a stream graph. Integers that are no packed codes come sorted, as segments and
    positions mostly do, and lie below the least dimension that anything has (positions are moved
    inside what they point into, so that they may be anything)."""
    generator = torch.Generator().manual_seed(seed)
    coded = _packed(graph)
    tensors = []
    for at, (param, given) in enumerate(zip(graph.params, shapes, strict=True)):
        assert isinstance(param.type, TensorType)
        dtype = TORCH_DTYPES[str(param.type.dtype)]
        stored = tuple(given.shape[dim] for dim in given.order)
        x = _values(stored, dtype, at in coded, generator)
        back = sorted(range(len(stored)), key=lambda dim: given.order[dim])
        tensors.append(x.permute(back).to(device))
    return tensors


def _values(
    shape: tuple[int, ...], dtype: torch.dtype, coded: bool, generator: torch.Generator
) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype == torch.uint8:
        low, high = (0, 256) if coded else BYTE_SCALES
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)
    if coded:
        words = torch.randint(-WORD, WORD, shape, generator=generator)
        return words.to(dtype)
    x = torch.randint(0, FEW, shape, generator=generator, dtype=dtype)
    return x.sort(-1).values if shape else x


def _packed(graph: Graph) -> set[int]:
    """Which inputs hold packed codes: all bits of them mean something."""
    kinds = StreamDequantize | CachedStream
    words = {op.operands[0] for op in graph.body.ops if isinstance(op, kinds)}
    return {at for at, param in enumerate(graph.params) if param in words}
