"""What the bytes of a quantised tensor go to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tilewright.runtime.quantized.tensor import QuantizedTensor


def padding(tensor: QuantizedTensor) -> dict[str, int]:
    """Bytes of words, scales and zeros beyond their codes and numbers."""
    lead, (rows, length) = tensor.shape[:-2], tensor.stored_shape
    matrices = math.prod(lead)
    codes = -(-matrices * rows * length * tensor.dtype.bits // 8)
    numbers = matrices * (rows * tensor.layout.groups(length) if tensor.group else 1)
    out = {"words": _bytes(tensor.words) - codes}
    for name, blocks in (("scales", tensor.scale_blocks), ("zeros", tensor.zero_blocks)):
        if blocks is not None:
            needed = min(numbers * blocks.element_size(), _bytes(blocks))
            out[name] = _bytes(blocks) - needed
    return out


def explain(tensor: QuantizedTensor) -> str:
    """A table: part, bytes, of these padding, what it is."""
    extra = padding(tensor)
    group = f"groups of {tensor.group}" if tensor.group else "one group"
    axis = "" if tensor.axis == -1 else " (stored transposed)"
    lines = [
        f"{tensor.dtype} {list(tensor.shape)}, {group} along axis {tensor.axis}{axis}: "
        f"{tensor.bits_per_weight:.4g} bits per weight"
    ]
    rows = [("words", tensor.words, f"codes of {tensor.dtype.bits} bits, {tensor.layout}")]
    rows.append(("scales", tensor.scale_blocks, str(tensor.scale_dtype)))
    if tensor.zero_blocks is not None:
        whole = tensor.zero_blocks.dtype == torch.uint8
        rows.append(("zeros", tensor.zero_blocks, "whole" if whole else "float"))
    if tensor.order is not None:
        rows.append(("order", tensor.order, "columns as they are stored"))
    rows_text = [
        (name, f"{_bytes(part):,}", f"{extra.get(name, 0):,}", what) for name, part, what in rows
    ]
    rows_text.append(("all", f"{tensor.nbytes:,}", f"{sum(extra.values()):,}", ""))
    for name, size, spare, what in [("part", "bytes", "padding", ""), *rows_text]:
        lines.append(f"  {name:8}{size:>16}{spare:>14}  {what}".rstrip())
    if tensor.zero_blocks is None and tensor.zero_point:
        lines.append(f"  every zero is {tensor.zero_point}")
    if tensor.tensor_scale != 1:
        lines.append(f"  times {tensor.tensor_scale:g}, the scale of the whole tensor")
    return "\n".join(lines)


def _bytes(part: torch.Tensor) -> int:
    return part.numel() * part.element_size()
