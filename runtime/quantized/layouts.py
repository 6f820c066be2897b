"""Which packings fit a quantised tensor, and which one it gets."""

from __future__ import annotations

import torch

from tilewright.ir.dtypes import DType
from tilewright.ir.packing import Packing


def default_layout(
    dtype: DType, group: int, length: int, device: torch.device | None = None
) -> Packing:
    """How codes lie if nothing else is asked for: as kernels of the device read them best (None: of
    this machine's CPU).

    ``group`` 0 is all of ``length``.
    """
    size = max(min(group or length, length), 1)
    if device is not None and device.type == "cuda":
        from tilewright.runtime.lowbit.gpu import gpu_packing

        return gpu_packing(dtype, size, device)
    from tilewright.runtime.lowbit.linear import preferred_packing  # which imports tensor.py

    return preferred_packing(dtype, size)


def same_groups(layout: Packing, group: int, length: int) -> bool:
    """Whether a layout cuts ``length`` codes into groups of ``group`` (0: all)."""
    size = group or length
    return layout.group == size or min(layout.group, size) >= length
