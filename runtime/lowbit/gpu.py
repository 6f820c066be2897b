"""Calls of products with quantised weights on CUDA tensors.

Weights are repacked for matrix units when first used there (``QuantizedTensor.to`` has them so from
the start). Activations are read in their own dtype; ``activation="int8"`` takes them as they are,
since nothing on a GPU gains from rounding them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from tilewright.ir.dtypes import F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.packing import TILES, Packing
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.schedule import BlockSchedule
from tilewright.runtime.cuda.repeat import Kinds
from tilewright.runtime.family import KernelFamily
from tilewright.runtime.gpu_targets import chosen_by_caller, device_target
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.lowbit.form import LinearForm
from tilewright.runtime.lowbit.gpu_matrix import MANY_ROWS, WrittenOut
from tilewright.runtime.lowbit.gpu_programs import PRODUCTS, Product
from tilewright.runtime.lowbit.linear import (
    FUNCTIONS,
    Repacked,
    check_numbers,
    flat_parts,
    padded,
    ready,
    remembered,
    repacked,
    weight_form,
    without_products,
)
from tilewright.runtime.quantized.tensor import QuantizedTensor
from tilewright.runtime.tracing.recorder import now
from tilewright.runtime.tuned import depends_on


def gpu_packing(dtype: DType, group: int, device: torch.device) -> Packing:
    """The packing that kernels of a device read best."""
    return choose_layout(dtype, group, device_target(_number(device)), activation="float").packing


def _number(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


_repacked: Repacked = WeakKeyDictionary()


def for_gpu(weight: QuantizedTensor) -> QuantizedTensor:
    """The weight as kernels for GPUs read it; repacked once."""
    layout = weight.layout
    if (layout.order, layout.lanes) == (TILES, LANES):  # as those of all GPUs are
        return weight
    wanted = gpu_packing(weight.dtype, layout.group, weight.words.device)
    return repacked(weight, lambda: wanted, _repacked)


@dataclass
class GpuCall:
    """A product with its weights at hand: its form, and the tensors that go with it."""

    form: LinearForm
    rows: int  # of the weights, without those that fill up the last block
    own: tuple[torch.Tensor, ...]
    given: tuple[object, ...]  # what it is known by: other objects may not get their addresses
    target: str
    written_out: WrittenOut
    kernels: dict[tuple[BlockSchedule | None, str], KernelFamily] = field(default_factory=dict)
    kinds: Kinds = field(default_factory=Kinds)

    def __call__(self, x: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        if x.shape[0] >= MANY_ROWS and self.form.narrow:
            return self.written_out(x, *residual)
        # x is contiguous, weights are what they were
        kind = x.shape[0], x.get_device(), *[y.stride() for y in residual], depends_on()
        again = None if now.recorder is not None else self.kinds.known.get(kind)
        tensors = x, *self.own, *residual
        if again is not None:
            (y,) = again(*tensors)
        else:
            chosen = chosen_by_caller()
            kernel = self.kernels.get(chosen) or self._kernel(*chosen)
            (y,) = self.kinds.first(kind, kernel, tensors)
        return y if y.shape[1] == self.rows else y[:, : self.rows].contiguous()

    def _kernel(self, forced: BlockSchedule | None, backend: str) -> KernelFamily:
        wanted = Product(self.form, self.target, "triton" if backend == "gpu" else backend, forced)
        made = self.kernels[forced, backend] = PRODUCTS[wanted]
        return made


def gpu_linear(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    activation: str = "float",
    *,
    residual: torch.Tensor | None = None,
    epilogue: str = "",
) -> torch.Tensor:
    """``linear_kernel`` on a GPU. Raises UnsupportedError for what no kernel covers."""
    return _single(x, (weight,), (bias,), residual, epilogue)


def gpu_gated(
    x: torch.Tensor,
    gate: QuantizedTensor,
    up: QuantizedTensor,
    biases: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    activation: str = "float",
    *,
    epilogue: str = "silu",
) -> torch.Tensor:
    """``gated_kernel`` on a GPU: both products and what follows in one kernel."""
    return _single(x, (gate, up), biases, None, epilogue)


def gpu_linears(
    x: torch.Tensor,
    weights: Sequence[QuantizedTensor],
    biases: Sequence[torch.Tensor | None] = (),
    activation: str = "float",
) -> tuple[torch.Tensor, ...]:
    """``linears_kernel`` on a GPU: a launch for every weight."""
    given = tuple(biases) or (None,) * len(weights)
    each = zip(weights, given, strict=True)
    return tuple(gpu_linear(x, weight, bias) for weight, bias in each)


def _single(
    x: torch.Tensor,
    weights: tuple[QuantizedTensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    residual: torch.Tensor | None,
    epilogue: str,
) -> torch.Tensor:
    if x.dtype not in FLOATS or epilogue not in FUNCTIONS:
        raise UnsupportedError(f"no kernel for activations of {x.dtype} and {epilogue!r}")
    if not x.numel() or not weights[0].shape[0]:
        return without_products(x, weights[0].shape[0], biases, residual, epilogue)
    if x.shape[1] == 1:
        raise UnsupportedError("products of rows of one element on a GPU")
    x, weights = ready(x, weights, for_gpu)
    residual = padded(residual, weights[0].layout.lanes)
    kind = None if residual is None else residual.dtype

    def make() -> GpuCall:
        return _prepare(x, weights, biases, kind, epilogue)

    call = remembered(weights, biases, ("gpu", x.dtype, kind, epilogue), make)
    return call(x) if residual is None else call(x, residual)


def _prepare(
    x: torch.Tensor,
    weights: tuple[QuantizedTensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    residual: torch.dtype | None,
    epilogue: str,
) -> GpuCall:
    lanes, rows = weights[0].layout.lanes, weights[0].shape[0]
    own: list[torch.Tensor] = []
    parts, forms = [], []
    for weight, given in zip(weights, biases, strict=True):
        check_numbers(weight)
        bias = padded(given, lanes)
        parts.append((tuple(flat_parts(weight)), bias))
        own += [part for part in (*parts[-1][0], bias) if part is not None]
        forms.append(weight_form(weight, bias))
    kind = None if residual is None else FLOATS[residual]
    dtype = FLOATS[x.dtype]
    form = LinearForm(
        tuple(forms), weights[0].shape[1], False, dtype, kind, epilogue, narrow=dtype != F32
    )
    target = device_target(_number(x.device)).name
    many = WrittenOut(form, target, rows, tuple(parts))
    return GpuCall(form, rows, tuple(own), (weights[1:], biases), target, many)
