"""bitsandbytes: equal to table[code] * absmax, also where absmax is itself quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.checkpoints.writers import folder, nibbles
from tilewright.frontend.checkpoints import open_checkpoint
from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import DataError

NAME = "model.layers.0.self_attn.q_proj"
NF4 = torch.from_numpy(TABLE["nf4"].codec.values.copy())
# bitsandbytes' fp4: sign, and 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4
FP4_HALF = [0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]
FP4 = torch.tensor(FP4_HALF + [-v for v in FP4_HALF])


def layer(
    codes: torch.Tensor, absmax: torch.Tensor, kind: str, block: int, **nested: Any
) -> dict[str, torch.Tensor]:
    """What Linear4bit's state_dict holds; codes [N, K]."""
    state = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "bfloat16",
        "shape": list(codes.shape),
        **{k: v for k, v in nested.items() if not isinstance(v, torch.Tensor)},
    }
    packed = nibbles(codes.flatten(), first_high=True).unsqueeze(1)
    text = json.dumps(state).encode()
    return {
        f"{NAME}.weight": packed,
        f"{NAME}.weight.absmax": absmax,
        f"{NAME}.weight.quant_map": NF4 if kind == "nf4" else FP4,
        f"{NAME}.weight.quant_state.bitsandbytes__{kind}": torch.tensor(
            list(text), dtype=torch.uint8
        ),
        **{f"{NAME}.weight.{k}": v for k, v in nested.items() if isinstance(v, torch.Tensor)},
    }


def drawn(rows: int, length: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(16, (rows, length), generator=generator)
    return codes, torch.rand(-(-rows * length // block), generator=generator) + 0.1


def formula(
    codes: torch.Tensor, table: torch.Tensor, scales: torch.Tensor, block: int
) -> torch.Tensor:
    every = scales.repeat_interleave(block)[: codes.numel()]
    return (table[codes.flatten()] * every).view_as(codes)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
# the last two have blocks that go on in the next row; of the very last, the last block is short
@pytest.mark.parametrize(("rows", "length", "block"), [(8, 128, 64), (6, 96, 64), (3, 80, 64)])
def test_equal_to_the_formula(
    tmp_path: Path, kind: str, rows: int, length: int, block: int
) -> None:
    codes, scales = drawn(rows, length, block)
    opened = open_checkpoint(folder(tmp_path / "m", layer(codes, scales, kind, block)))
    found = opened.read(NAME)
    assert found.group == np.gcd(length, block)
    assert (found.dtype.name == "nf4") == (kind == "nf4")
    table = NF4 if kind == "nf4" else FP4
    assert torch.equal(found.dequantize(), formula(codes, table, scales, block))
    assert ("cross rows" in opened.weights[NAME].note) == (length % block != 0)


def test_nested_scales(tmp_path: Path) -> None:
    """Scales as positions in a table of 256, with a scale per block of them, around an offset."""
    codes, _ = drawn(40, 128, 64)
    generator = torch.Generator().manual_seed(3)
    positions = torch.randint(256, (80,), generator=generator, dtype=torch.uint8)
    table = torch.linspace(-1, 1, 256)
    outer = torch.rand(3, generator=generator) + 0.5
    nested = {
        "nested_absmax": outer,
        "nested_quant_map": table,
        "nested_blocksize": 32,
        "nested_offset": 1.75,
        "nested_dtype": "float32",
    }
    opened = open_checkpoint(folder(tmp_path / "m", layer(codes, positions, "nf4", 64, **nested)))
    scales = table[positions.long()] * outer[torch.arange(80) // 32] + 1.75
    assert opened.weights[NAME].format == "bitsandbytes nf4, nested scales"
    assert torch.equal(opened.read(NAME).dequantize(), formula(codes, NF4, scales, 64))


def test_codes_stored_as_another_dtype(tmp_path: Path) -> None:
    codes, scales = drawn(8, 128, 64)
    tensors = layer(codes, scales, "nf4", 64)
    packed = tensors[f"{NAME}.weight"]
    tensors[f"{NAME}.weight"] = packed.flatten().view(torch.bfloat16).unsqueeze(1)
    opened = open_checkpoint(folder(tmp_path / "m", tensors))
    assert torch.equal(opened.read(NAME).dequantize(), formula(codes, NF4, scales, 64))


def test_int8_rows(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-127, 128, (8, 40), generator=generator).to(torch.int8)
    largest = torch.rand(8, generator=generator) + 0.5
    tensors = {f"{NAME}.weight": codes, f"{NAME}.SCB": largest}
    found = open_checkpoint(folder(tmp_path / "m", tensors)).read(NAME)
    assert torch.equal(found.dequantize(), codes * largest[:, None] * 7.874015718698502e-3)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (".absmax", torch.ones(3), r"absmax must be F32 \[16\] .*it is F32 \[3\]"),
        (".absmax", torch.full((16,), float("nan")), "absmax must hold finite scales; 16 of 16"),
        (".quant_map", torch.ones(8), r"quant_map must be F32 \[16\]"),
        (".quant_map", None, "quant_map is missing"),
        (".quant_state.bitsandbytes__nf4", None, "it holds shape and block size"),
        (
            ".quant_state.bitsandbytes__nf4",
            torch.tensor([255, 0, 1], dtype=torch.uint8),
            "must be JSON as bytes",
        ),
        (
            ".quant_state.bitsandbytes__nf4",
            torch.tensor(list(b'{"shape": [8, -128], "blocksize": 64}'), dtype=torch.uint8),
            r"shape must be \[N, K\]; it is \[8, -128\]",
        ),
        (
            ".quant_state.bitsandbytes__nf4",
            torch.tensor(list(b'{"shape": [8, 128], "blocksize": 0}'), dtype=torch.uint8),
            "blocksize must be a number from 1; it is 0",
        ),
        ("", torch.zeros(10, 1, dtype=torch.uint8), "weight must have 512 bytes"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, value: torch.Tensor | None, message: str
) -> None:
    codes, scales = drawn(8, 128, 64)
    tensors: dict[str, torch.Tensor | None] = {**layer(codes, scales, "nf4", 64)}
    tensors[f"{NAME}.weight{part}"] = value
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    opened = open_checkpoint(folder(tmp_path / "m", kept))
    with pytest.raises(DataError, match=message):
        opened.read(NAME)
