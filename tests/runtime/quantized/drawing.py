"""What Hypothesis draws for quantised tensors: dtypes, packings, parts; their meaning in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.packing import ORDERS, Packing
from tilewright.runtime.quantized.tensor import QuantizedTensor

Draw = st.DrawFn
WEIGHTS = [d for d in TABLE.values() if d.bits <= 8 and d.name not in ("bool", "e8m0")]
SCALES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def weight_dtypes() -> st.SearchStrategy[DType]:
    """Any dtype that weights may have; those of known formats more often."""
    known = [TABLE[n] for n in ("u4", "i4", "u3", "u1", "f4e2m1", "nf4", "u8", "i8", "f8e4m3")]
    return st.one_of(st.sampled_from(known), st.sampled_from(WEIGHTS))


@st.composite
def packings(draw: Draw, bits: int | None = None, group: int | None = None) -> Packing:
    """Any packing: all orders, planes in any order, any number of lanes."""
    bits = draw(st.integers(1, 8)) if bits is None else bits
    group = draw(st.integers(1, 70)) if group is None else group
    lanes = draw(st.sampled_from([1, 2, 3, 8, 16]))
    order = draw(st.sampled_from(ORDERS))
    if order != "quads":
        return Packing(order, (bits,), lanes, group)
    planes: list[int] = []
    while sum(planes) < bits:
        left = bits - sum(planes)
        planes.append(draw(st.sampled_from([w for w in (1, 2, 4, 8) if w <= left])))
    return Packing("quads", tuple(planes), lanes, group)


@dataclass
class Parts:
    """Arguments of ``from_codes``, and the rows and columns that they are for."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    options: dict[str, Any]

    def tensor(self, **more: Any) -> QuantizedTensor:
        return QuantizedTensor.from_codes(
            self.codes, self.scales, self.zeros, **{**self.options, **more}
        )

    def values(self) -> np.ndarray:
        """What the parts mean, written out in NumPy's f32."""
        dtype = self.options["dtype"]
        codes = self.codes.numpy()
        length = codes.shape[-1]
        # decode(code) for integers is the stored code: zeros are in these units
        numbers = codes.astype(np.float32) if dtype.is_int else dtype.decode(codes)
        at = np.arange(length) // (
            self.options["group"] if self.options["group"] != "tensor" else length or 1
        )
        if self.scales.dtype == torch.uint8:
            scales = TABLE[self.options["scale_dtype"]].decode(self.scales.numpy())
        else:
            scales = self.scales.to(torch.float32).numpy()
        zero = np.float32(1 << dtype.bits - 1 if dtype.kind == "int" else 0)
        zeros = np.broadcast_to(zero, scales.shape)
        if self.zeros is not None:
            zeros = self.zeros.to(torch.float32).numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (numbers - zeros[..., at]) * scales[..., at]
            stored = scaled * np.float32(self.options["tensor_scale"])
        order = self.options["order"]
        if order is None:
            return stored
        out = np.empty_like(stored)
        out[..., order.numpy()] = stored
        return out


@st.composite
def parts(draw: Draw) -> Parts:
    """Codes, scales and zeros of any kind, for any sizes, 0 and 1 among them."""
    dtype = draw(weight_dtypes())
    lead = draw(st.sampled_from([(), (), (1,), (2,), (2, 3), (0,)]))
    rows, length = draw(st.integers(0, 40)), draw(st.integers(0, 100))
    group = draw(st.one_of(st.integers(1, 120), st.just("tensor")))
    groups = math.ceil(length / group) if isinstance(group, int) else min(length, 1)
    beside = (*lead, rows, groups)
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    codes = torch.randint(0, 1 << dtype.bits, (*lead, rows, length), generator=rng)
    scale_dtype = draw(st.sampled_from([*SCALES, "e8m0", "f8e4m3"]))
    if scale_dtype in SCALES:
        scales = torch.randn(beside, generator=rng).to(SCALES[scale_dtype])
    else:
        scales = torch.randint(100, 127, beside, generator=rng, dtype=torch.uint8)
    zeros = None
    kind = draw(st.sampled_from(["none", "bytes", "wide", "f16", "f32"]))
    if kind in ("bytes", "wide"):
        most = 256 if kind == "bytes" else 300
        zeros = torch.randint(0, most, beside, generator=rng, dtype=torch.int32)
    elif kind != "none":
        zeros = (torch.randn(beside, generator=rng) * 9).to(SCALES[kind])
    order = torch.randperm(length, generator=rng) if draw(st.integers(0, 3)) == 0 else None
    options = {
        "dtype": dtype,
        "group": group,
        "scale_dtype": scale_dtype,
        "tensor_scale": draw(st.sampled_from([1.0, 0.125, 1 / 3])),
        "order": order,
    }
    return Parts(codes, scales, zeros, options)


def heavy_tailed(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Weights with outliers: Student's t with 3 degrees of freedom."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(3, (rows, length)).astype(np.float32)) * 0.02
