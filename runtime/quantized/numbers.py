"""Codes and scales in torch: encoding as exact as ``DType.encode``, without its tables where a few
operations on the bits of f32 do."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from tilewright.ir.dtypes import DType

STORED = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_EXPONENT = 0x7F800000  # the bits of f32's exponent
_FEW = 48  # limits that are compared one by one faster than searched in


@lru_cache(maxsize=256)
def _tables(dtype: DType, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What stored codes stand for (integers: themselves), limits and codes of ``Codec``.

    Limits are the next f32 below, which is the same for numbers in f32.
    """
    codec = dtype.codec
    whole = np.arange(1 << dtype.bits, dtype=np.float32)
    values = torch.tensor(whole if dtype.is_int else codec.values, device=device)
    limits = codec.limits.astype(np.float32)
    above = limits.astype(np.float64) > codec.limits
    limits = np.where(above, np.nextafter(limits, np.float32(-np.inf)), limits)
    return values, torch.tensor(limits, device=device), torch.tensor(codec.codes, device=device)


def stored_values(dtype: DType, device: torch.device) -> torch.Tensor:
    """f32 [2**bits]: what stored codes stand for, integers for themselves."""
    return _tables(dtype, device)[0]


def decode(codes: torch.Tensor, dtype: DType) -> torch.Tensor:
    """uint8 codes as f32: integers as stored, floats and tables as their values."""
    if dtype.is_int:
        return codes.to(torch.float32)
    return _look_up(stored_values(dtype, codes.device), codes)


def _look_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.reshape(-1).to(torch.int32)).view(index.shape)


def encode(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """f32 values, finite, as uint8 codes of the nearest: integers in units of stored codes."""
    if dtype.is_int:
        return values.round().clamp_(0, (1 << dtype.bits) - 1).to(torch.uint8)
    if dtype.kind == "table" or dtype.bits == dtype.exponent + dtype.mantissa:
        _, limits, codes = _tables(dtype, values.device)
        return _look_up(codes, _how_many_below(limits, values))
    return _encode_float(values, dtype)


def _how_many_below(limits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many of the rising limits are below each value."""
    if len(limits) > _FEW:
        return torch.bucketize(values.contiguous(), limits, out_int32=True)
    count = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    for limit in limits.tolist():
        count.add_(values > limit)
    return count


def _encode_float(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Each magnitude in steps of its power of two, rounded; the steps count on from the power's
    first code, also where rounding reaches the next power. (Without a mantissa 1.5 goes to 2 and
    0.5 to 0, which are ties to even and what ``float_codec`` says.)"""
    mantissa, bias = dtype.mantissa, (1 << dtype.exponent - 1) - 1
    least = 128 - bias << 23  # the bits of the smallest normal number
    size = values.abs().clamp_(max=dtype.largest)
    power = (size.view(torch.int32) & _EXPONENT).clamp_(min=least)
    steps = size.mul_((((254 + mantissa) << 23) - power).view(torch.float32)).round_()
    code = ((power - least) >> (23 - mantissa)).add_(steps.to(torch.int32))
    negative = (values.view(torch.int32) >> 31) & (1 << dtype.bits - 1)
    return code.add_(negative).to(torch.uint8)


def round_to_codes(values: torch.Tensor, dtype: DType) -> torch.Tensor:
    """``decode(encode(values))``: what f32 values become, a new tensor."""
    if dtype.is_int:
        return values.round().clamp_(0, (1 << dtype.bits) - 1)
    if dtype.kind == "table":
        return decode(encode(values, dtype), dtype)
    mantissa, bias = dtype.mantissa, (1 << dtype.exponent - 1) - 1
    out = values.clamp(-dtype.largest, dtype.largest)
    power = (out.view(torch.int32) & _EXPONENT).clamp_(min=128 - bias << 23)
    steps = out.mul_((((254 + mantissa) << 23) - power).view(torch.float32)).round_()
    return steps.mul_(power.sub_(mantissa << 23).view(torch.float32))
