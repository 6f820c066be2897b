"""Writes checkpoints of other formats, as their documentation says and without our decoders.

Bits are put together as Python numbers, one code after the other, so that these share no code and
no method with what they test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ: which of eight columns each field of a word holds


def folder(
    path: Path, tensors: Mapping[str, torch.Tensor], quantization: Mapping[str, Any] | None = None
) -> Path:
    """A folder with a model.safetensors, and a config.json if it has something to say."""
    path.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(state, path / "model.safetensors")
    if quantization is not None:
        config = {"model_type": "llama", "quantization_config": dict(quantization)}
        (path / "config.json").write_text(json.dumps(config))
    return path


def bit_string(codes: Sequence[int], bits: int) -> list[int]:
    """int32 words of codes back to back, the first in the lowest bits."""
    number = sum(int(code) << i * bits for i, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    words = [(number >> 32 * i) & 0xFFFFFFFF for i in range(count)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def packed_rows(codes: npt.ArrayLike, bits: int) -> torch.Tensor:
    """int32 [rows, words] of codes [rows, n]."""
    rows = [bit_string(row, bits) for row in np.asarray(codes).tolist()]
    return torch.tensor(rows, dtype=torch.int32)


def gptq_layer(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int, rule: str = "v1"
) -> dict[str, torch.Tensor]:
    """qweight, qzeros, scales of codes [N, K], zeros and scales [N, groups]."""
    stored = zeros.to(torch.int64) - (1 if rule == "v1" else 0)
    stored &= (1 << bits) - 1
    return {
        "qweight": packed_rows(codes.numpy(), bits).t(),
        "qzeros": packed_rows(stored.t().numpy(), bits),
        "scales": scales.t(),
    }


def awq_layer(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor
) -> dict[str, torch.Tensor]:
    """qweight, qzeros, scales of AWQ's GEMM order."""

    def words(values: torch.Tensor) -> torch.Tensor:  # [N, x] -> int32 [x, N / 8]
        rows = []
        for row in values.t().tolist():
            eights = [row[i : i + 8] for i in range(0, len(row), 8)]
            mixed = [eight[i] for eight in eights for i in AWQ_ORDER]
            rows.append(bit_string(mixed, 4))
        return torch.tensor(rows, dtype=torch.int32)

    return {"qweight": words(codes), "qzeros": words(zeros), "scales": scales.t()}


def under(name: str, layer: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's tensors under its name."""
    return {f"{name}.{part}": tensor for part, tensor in layer.items()}


def nibbles(codes: torch.Tensor, first_high: bool = False) -> torch.Tensor:
    """uint8 [..., n / 2]: two codes a byte."""
    pairs = codes.to(torch.uint8).reshape(*codes.shape[:-1], -1, 2)
    low, high = (pairs[..., 1], pairs[..., 0]) if first_high else (pairs[..., 0], pairs[..., 1])
    return low + 16 * high
