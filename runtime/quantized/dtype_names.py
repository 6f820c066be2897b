"""The dtypes that codes and scales may have, by name. Knows nothing of torch."""

from __future__ import annotations

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.errors import SettingError

SCALE_DTYPES = ("f16", "bf16", "f32", "e8m0", "f8e4m3")


def weight_dtype(dtype: str | DType) -> DType:
    """The dtype of codes that is meant. Raises SettingError."""
    row = TABLE.get(str(dtype))
    if row is None:
        raise SettingError(
            f"dtype={dtype!r} is no element type; u1 to u8, i2 to i8, nf4, floats such as f4e2m1 "
            "or f8e4m3 are, and what tilewright.table_dtype makes"
        )
    if row.bits > 8 or row.name in ("bool", "e8m0"):
        raise SettingError(f"dtype={row.name!r} holds no weights; u8, i4, f8e4m3 or nf4 would")
    return row


def scale_dtype_named(dtype: str | DType) -> DType:
    """The dtype of scales that is meant. Raises SettingError."""
    if str(dtype) not in SCALE_DTYPES:
        known = ", ".join(SCALE_DTYPES)
        raise SettingError(f"scale_dtype={str(dtype)!r} must be one of {known}")
    return TABLE[str(dtype)]
