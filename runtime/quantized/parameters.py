"""Scales and zeros as they are held: rounded to their dtype, refused where it cannot hold them."""

from __future__ import annotations

import torch

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import DataError
from tilewright.runtime.quantized import checks
from tilewright.runtime.quantized.dtype_names import scale_dtype_named
from tilewright.runtime.quantized.numbers import STORED, decode, encode

BYTES = ("e8m0", "f8e4m3")  # scales stored as codes
_OF_TORCH = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f32",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e8m0fnu: "e8m0",
}


def stored_scales(
    scales: torch.Tensor, scale_dtype: str | DType | None
) -> tuple[DType, torch.Tensor]:
    """The dtype that scales are held in and the tensor that holds them (uint8 for codes).

    uint8 scales are codes of ``scale_dtype``; others are rounded to it, or keep their dtype if it
    is None. Raises DataError for NaN, infinities, and what the dtype cannot hold.
    """
    if scales.dtype == torch.uint8:
        if scale_dtype is None or str(scale_dtype) not in BYTES:
            raise DataError(
                f"scales are uint8; scale_dtype must be {' or '.join(BYTES)} then, not "
                f"{scale_dtype and str(scale_dtype)}"
            )
        row = TABLE[str(scale_dtype)]
        checks.is_finite("scales", decode(scales, row))
        return row, scales
    if scales.dtype not in _OF_TORCH:
        raise DataError(f"scales must be floats, or uint8 codes of e8m0; they are {scales.dtype}")
    row = scale_dtype_named(scale_dtype or _OF_TORCH[scales.dtype])
    if scales.element_size() == 1 and _OF_TORCH[scales.dtype] == row.name:
        codes = scales.view(torch.uint8)
        checks.is_finite("scales", decode(codes, row))
        return row, codes
    checks.is_finite("scales", scales.to(torch.float32))
    return row, held_scales(scales.to(torch.float32), row)


def held_scales(scales: torch.Tensor, row: DType) -> torch.Tensor:
    """Finite f32 scales rounded to ``row``, as they are held. Raises DataError if one is out of its
    range."""
    if row.name == "f32":
        return scales
    if row.name == "e8m0" and scales.numel() and float(scales.min()) < 0:
        raise DataError(f"scales must not be below 0 to be e8m0; one is {float(scales.min())}")
    held = encode(scales, row) if row.name in BYTES else scales.to(STORED[row.name])
    largest = largest_scale(row)
    if scales.numel() and (size := float(scales.abs().max())) > largest * (1 + row.epsilon / 4):
        raise DataError(
            f"scales go up to {size:g}, {row} to {largest:g}; use another scale_dtype, such as "
            "'f32', or a tensor_scale"
        )
    return held


def largest_scale(row: DType) -> float:
    """The largest finite scale of a dtype."""
    return row.largest if row.name in BYTES else float(torch.finfo(STORED[row.name]).max)


def scale_values(held: torch.Tensor, row: DType) -> torch.Tensor:
    """Held scales as f32."""
    return decode(held, row) if row.name in BYTES else held.to(torch.float32)


def stored_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """Zeros as they are held: uint8 for integers from 0 to 255, else f16 (if they are) or f32.

    Raises DataError for NaN and infinities.
    """
    if zeros.dtype in (torch.float16, torch.float32, torch.bfloat16, torch.float64):
        checks.is_finite("zeros", zeros)
        return zeros if zeros.dtype == torch.float16 else zeros.to(torch.float32)
    if zeros.dtype == torch.bool or zeros.is_complex() or zeros.is_floating_point():
        raise DataError(f"zeros must be integers, f16 or f32; they are {zeros.dtype}")
    if zeros.dtype == torch.uint8 or not zeros.numel():
        return zeros.to(torch.uint8)
    low, high = (int(v) for v in torch.aminmax(zeros))
    return zeros.to(torch.uint8 if low >= 0 and high <= 255 else torch.float32)
