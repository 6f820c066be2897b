"""What quantised data must be like: every refusal names the tensor, what was expected and found."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.ir.dtypes import DType
from tilewright.ir.errors import DataError, SettingError


def group_size(group: int | str, length: int) -> int:
    """The codes of a group along an axis of ``length``; 0 for one scale in all."""
    if group == "channel":
        return max(length, 1)
    if group == "tensor":
        return 0
    if isinstance(group, str | bool) or int(group) != group or group < 1:
        raise SettingError(
            f"group={group!r} must be a number of codes from 1, 'channel' for one scale per row, "
            "or 'tensor' for one scale in all"
        )
    return int(group)


def shape_is(name: str, tensor: torch.Tensor, expected: Sequence[int], why: str) -> None:
    """Raises DataError unless the tensor has the expected shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise DataError(f"{name} must be {list(expected)} {why}; it is {list(tensor.shape)}")


def dtype_is(name: str, tensor: torch.Tensor, expected: Sequence[torch.dtype], why: str) -> None:
    """Raises DataError unless the tensor has one of the expected dtypes."""
    if tensor.dtype not in expected:
        named = " or ".join(str(d).removeprefix("torch.") for d in expected)
        found = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{name} must be {named} {why}; it is {found}")


def is_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises DataError, with the place of the first, if an element is NaN or infinite."""
    if tensor.numel() and not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        wrong = torch.isfinite(tensor).logical_not_()
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{name} must be finite; {int(wrong.sum())} of {tensor.numel()} elements are not, "
                f"the first at {at}: {float(tensor[tuple(at)])}"
            )


def codes_below(name: str, codes: torch.Tensor, dtype: DType) -> None:
    """Raises DataError unless all codes are whole numbers from 0 to 2**bits - 1."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise DataError(f"{name} must be integers, the codes of {dtype}; they are {codes.dtype}")
    if not codes.numel():
        return
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < 0 or high >= 1 << dtype.bits:
        raise DataError(
            f"{name} must be from 0 to {(1 << dtype.bits) - 1}, the codes of {dtype}; they go "
            f"from {low} to {high}"
        )


def is_order(name: str, order: torch.Tensor, length: int) -> None:
    """Raises DataError unless ``order`` is each of 0 to length - 1 once."""
    shape_is(name, order, (length,), "for as many columns")
    dtype_is(name, order, (torch.int64,), "as positions are")
    if not torch.equal(order.sort().values, torch.arange(length, device=order.device)):
        raise DataError(f"{name} must hold each of 0 to {length - 1} once; it does not")
