"""Which packings fit a quantised tensor, and which one it gets."""

from __future__ import annotations

from tilewright.ir.dtypes import DType
from tilewright.ir.packing import Packing


def default_layout(dtype: DType, group: int, length: int) -> Packing:
    """How codes lie if nothing else is asked for: as kernels of this machine read them best.

    ``group`` 0 is all of ``length``.
    """
    from tilewright.runtime.lowbit.linear import preferred_packing  # which imports tensor.py

    return preferred_packing(dtype, max(min(group or length, length), 1))


def same_groups(layout: Packing, group: int, length: int) -> bool:
    """Whether a layout cuts ``length`` codes into groups of ``group`` (0: all)."""
    size = group or length
    return layout.group == size or min(layout.group, size) >= length
