"""The custom ops of quantised weights, and what they run: a kernel, or torch where there is none.

``tilewright::linear``, ``tilewright::dequantize`` and ``tilewright::embedding`` take a weight as
its tensors and ``Facts``. Gradients reach the input, the bias and the residual; a weight has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tilewright.frontend.quantize.form import Form, select_rows
from tilewright.ir.errors import BindError
from tilewright.runtime.lowbit.fallback import linear_somehow
from tilewright.runtime.lowbit.reference import working_dtype
from tilewright.runtime.quantized.tensor import QuantizedTensor

Optional = torch.Tensor | None


def product(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: Optional,
    residual: Optional,
    activation: str,
    epilogue: str,
) -> torch.Tensor:
    """``epilogue(x @ weight.T + bias) + residual`` for x [..., K]: [..., N] in x's dtype."""
    lead, columns = x.shape[:-1], x.shape[-1]
    rows = weight.shape[0]
    count = math.prod(lead)
    given = x.reshape(count, columns)
    beside = None if residual is None else residual.reshape(count, rows)
    result = linear_somehow(given, weight, bias, activation, epilogue, beside)
    return result.reshape(*lead, rows)


@torch.library.custom_op("tilewright::linear", mutates_args=())
def linear_op(  # noqa: PLR0913, PLR0917  (an op takes a weight as its parts)
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional,
    order: Optional,
    bias: Optional,
    residual: Optional,
    names: str,
    sizes: Sequence[int],
    tensor_scale: float,
    activation: str,
    epilogue: str,
) -> torch.Tensor:
    """``product`` with a weight taken apart."""
    weight = weight_of(words, scales, zeros, order, names, sizes, tensor_scale)
    return product(x, weight, bias, residual, activation, epilogue)


@linear_op.register_fake
def _(x: torch.Tensor, *others: Any) -> torch.Tensor:
    sizes = others[7]
    return x.new_empty(*x.shape[:-1], sizes[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, words, scales, zeros, order, bias, residual, *facts, activation, epilogue = inputs
    needed = x if epilogue else None  # only then does a gradient depend on the input's value
    ctx.save_for_backward(needed, words, scales, zeros, order, bias)
    ctx.facts, ctx.activation, ctx.epilogue = facts, activation, epilogue
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Of x, bias and residual. Rounding x to 8 bits counts as the identity."""
    x, *parts, bias = ctx.saved_tensors
    for_x, for_bias, for_residual = (ctx.needs_input_grad[at] for at in (0, 5, 6))
    dtype, residual_dtype = ctx.dtypes
    inner = grad
    if ctx.epilogue and (for_x or for_bias):
        z = linear_op(x, *parts, bias, None, *ctx.facts, ctx.activation, "")
        inner = _DERIVATIVES[ctx.epilogue](grad, z)
    of_x = of_bias = None
    if for_x:
        work = working_dtype(dtype)
        weight = dequantize_op(*parts, *ctx.facts, work)
        of_x = (inner.to(work) @ weight).to(dtype)
    if for_bias:
        of_bias = inner.sum_to_size(bias.shape).to(bias.dtype)
    of_residual = grad.to(residual_dtype) if for_residual else None
    return of_x, None, None, None, None, of_bias, of_residual, None, None, None, None, None


_aten = torch.ops.aten
_DERIVATIVES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "relu": lambda grad, z: _aten.threshold_backward(grad, z, 0),
    "silu": _aten.silu_backward,
    "gelu": lambda grad, z: _aten.gelu_backward(grad, z, approximate="none"),
    "gelu_tanh": lambda grad, z: _aten.gelu_backward(grad, z, approximate="tanh"),
}
linear_op.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("tilewright::dequantize", mutates_args=())
def dequantize_op(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional,
    order: Optional,
    names: str,
    sizes: Sequence[int],
    tensor_scale: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The values [N, K] of a quantised weight."""
    weight = weight_of(words, scales, zeros, order, names, sizes, tensor_scale)
    return weight.dequantize().to(dtype)


@dequantize_op.register_fake
def _(words: torch.Tensor, *others: Any) -> torch.Tensor:
    sizes, dtype = others[4], others[6]
    return words.new_empty(sizes[0], sizes[1], dtype=dtype)


@torch.library.custom_op("tilewright::embedding", mutates_args=())
def embedding_op(  # noqa: PLR0913, PLR0917  (an op takes a weight as its parts)
    indices: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional,
    order: Optional,
    names: str,
    sizes: Sequence[int],
    tensor_scale: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows of a quantised weight [N, K] for indices [...]: [..., K] in ``dtype``."""
    weight = weight_of(words, scales, zeros, order, names, sizes, tensor_scale)
    return look_up(indices, weight, dtype)


@embedding_op.register_fake
def _(indices: torch.Tensor, words: torch.Tensor, *others: Any) -> torch.Tensor:
    sizes, dtype = others[4], others[6]
    return words.new_empty(*indices.shape, sizes[1], dtype=dtype)


def look_up(indices: torch.Tensor, weight: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a quantised weight [N, K] for indices [...]. Raises BindError if one is not there."""
    flat = indices.reshape(-1)
    rows, columns = weight.shape
    if not len(flat):
        return weight.words.new_empty(*indices.shape, columns, dtype=dtype)
    if int(flat.min()) < 0 or int(flat.max()) >= rows:
        raise BindError(
            f"an embedding of {rows} rows has none for {int(flat.min())} to {int(flat.max())}"
        )
    if len(flat) > rows or weight.axis != -1:
        values = weight.dequantize()[flat]
    else:
        values = select_rows(weight, flat).dequantize()
    return values.to(dtype).reshape(*indices.shape, columns)


def weight_of(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional,
    order: Optional,
    names: str,
    sizes: Sequence[int],
    tensor_scale: float,
) -> QuantizedTensor:
    form = Form.from_facts(names, tuple(sizes), tensor_scale)
    return form.tensor((words, scales, zeros, order))
