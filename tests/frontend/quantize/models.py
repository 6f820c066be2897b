"""Small models and weights for the tests of quantised layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tilewright.runtime.quantized.tensor import QuantizedTensor


class Network(nn.Module):
    """An embedding tied to the head, a bias here and there, and layers that stay as they are."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 48)
        self.up = nn.Linear(48, 40)
        self.norm = nn.LayerNorm(40)
        self.down_proj = nn.Linear(40, 48, bias=False)
        self.head = nn.Linear(48, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(indices)
        hidden = hidden + self.down_proj(torch.relu(self.norm(self.up(hidden))))
        result: torch.Tensor = self.head(hidden)
        return result


def indices(rows: int = 2, columns: int = 7) -> torch.Tensor:
    return torch.arange(rows * columns).reshape(rows, columns) * 3 % 50


def weight(rows: int, columns: int, dtype: str = "u4", **settings: Any) -> QuantizedTensor:
    """A random quantised matrix, the same for the same arguments."""
    generator = torch.Generator().manual_seed(rows * 1009 + columns)
    values = torch.randn(rows, columns, generator=generator)
    return QuantizedTensor.from_float(values, dtype, **{"group": 32, **settings})


def largest_error(x: torch.Tensor, w: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """How far f32 sums of the products of x [M, K] and w [N, K] may be off, rounded as ``result``.

    The bound of a sum in any order, K * eps * sum |x| |w| (Higham, Accuracy and Stability, 3.1).
    """
    terms = x.double().abs() @ w.double().abs().T
    rounding = torch.finfo(result.dtype).eps * (result.double().abs() + 1e-6)
    return (w.shape[1] + 4) * torch.finfo(torch.float32).eps * terms + rounding
