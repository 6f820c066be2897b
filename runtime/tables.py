"""The tables that kernels with masks from memory take (passes/to_tile/tables.py says why)."""

from __future__ import annotations

import torch

from tilewright.passes.to_tile.tables import STRIDE


def block_extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest of every ``STRIDE`` elements (fewer at the end) along the last dimension
    of integers or bools [..., n], as i64 [..., ceil(n / STRIDE)]. Linear in the size of ``x``."""
    n = x.shape[-1]
    x = x.to(torch.uint8) if x.dtype == torch.bool else x
    blocks = -(-n // STRIDE)
    if missing := blocks * STRIDE - n:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], -1)
    low, high = torch.aminmax(x.reshape(*x.shape[:-1], blocks, STRIDE), dim=-1)
    return low.to(torch.int64), high.to(torch.int64)
