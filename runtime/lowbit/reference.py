"""What a product with quantised weights means, in torch: slow, clear, and what tests compare with.

It also runs where there is no kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tilewright.runtime.lowbit.linear import FUNCTIONS, why_not_bytes
from tilewright.runtime.quantized.tensor import QuantizedTensor

INT8_LARGEST = 127.0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a product is computed in: f64 for f64, f32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_linear(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    activation: str,
    epilogue: str = "",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``epilogue(x @ weight.T + bias) + residual``: x [M, K], weight [N, K], [M, N] in x's dtype.

    Everything is computed in f32 (f64 if x is) and rounded once at the end. With activation "int8",
    x is first rounded as ``rounded_to_int8`` says, if the weight's values are bytes.
    """
    work = working_dtype(x.dtype)
    taken = x.to(work)
    if activation == "int8" and _rounds(weight):
        taken = rounded_to_int8(taken, weight)
    if taken.numel() and weight.shape[0]:
        result = taken @ weight.dequantize().to(work).T
    else:
        result = taken.new_zeros(x.shape[0], weight.shape[0])
    if bias is not None:
        result = result + bias.to(work)
    result = FUNCTIONS[epilogue](result)
    if residual is not None:
        result = result + residual.to(work)
    return result.to(x.dtype)


def _rounds(weight: QuantizedTensor) -> bool:
    """Whether int8 activations apply to a weight."""
    return not why_not_bytes(weight.dtype, weight.zero_blocks is not None, weight.layout.group)


def rounded_to_int8(x: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
    """x [M, K] with each row's part in each group of the weight as multiples -127..127 of a scale.

    The scale is the part's largest magnitude / 127, the multiples are rounded to nearest even. With
    GPTQ's desc_act order the groups are those of the stored columns.
    """
    if weight.order is not None:
        back = torch.argsort(weight.order)
        return _rounded(x[:, weight.order], weight.group)[:, back]
    return _rounded(x, weight.group)


def _rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    rows, columns = x.shape
    if not rows or not columns:
        return x
    group = min(group or columns, columns)  # 0: one scale for the whole tensor
    padded = F.pad(x, (0, -columns % group)).reshape(rows, -1, group)
    scale = padded.abs().amax(-1, keepdim=True) / INT8_LARGEST
    multiples = torch.round(padded / torch.where(scale == 0, 1.0, scale))
    return (multiples * scale).reshape(rows, -1)[:, :columns]
