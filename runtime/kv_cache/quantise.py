"""Numbers to codes: the least and the largest of a group decide its scale and zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BindError
from tilewright.runtime.kv_cache.words import split

FARTHEST = 8  # a group's values are taken to spread over 1/8 of their magnitude at least


@dataclass(frozen=True)
class Coded:
    """Codes [batch, heads, tokens, width] uint8, scales and zeros as ``CacheForm`` says."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


def quantise(
    x: torch.Tensor, form: CacheForm, symmetric: bool, scale_dtype: torch.dtype, name: str
) -> Coded:
    """Codes of x [batch, heads, tokens, width]; by channel the tokens are whole groups, but the
    last one may be short. Codes are rounded against scales and zeros as they are stored.

    Symmetric: code - 2^(bits-1) is between -(2^(bits-1) - 1) and 2^(bits-1) - 1, no zeros.
    Raises BindError for NaN and infinities.
    """
    dim = 3 if form.by == "token" else 2
    groups, length = -(-x.shape[dim] // form.group), x.shape[dim]
    wide = x.float()
    short = groups * form.group - length
    if short:  # repeats the last number, which changes neither the least nor the largest
        last = wide.narrow(dim, length - 1, 1)
        shape = list(wide.shape)
        shape[dim] = short
        wide = torch.cat((wide, last.expand(shape)), dim)
    parted = split(wide, dim, (groups, form.group))
    # not aminmax, which wakes all threads even for one token
    low, high = parted.amin(dim + 1, keepdim=True), parted.amax(dim + 1, keepdim=True)
    levels = (1 << form.bits) - 1
    if symmetric:
        half = 1 << (form.bits - 1)
        scale = _stored(torch.maximum(-low, high) / max(half - 1, 1), scale_dtype, name)
        codes = (parted / scale).round().clamp(-half, half - 1) + half
        zero = None
    else:
        size = torch.maximum(high - low, torch.maximum(-low, high) / FARTHEST)
        scale = _stored(size / levels, scale_dtype, name)
        zero = (-low / scale).to(scale_dtype).float()
        codes = (parted / scale + zero).round().clamp(0, levels)
    codes = codes.to(torch.uint8).flatten(dim, dim + 1).narrow(dim, 0, length)
    scales = _beside(scale, form, scale_dtype)
    return Coded(codes, scales, None if zero is None else _beside(zero, form, scale_dtype))


def _stored(scale: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """As the dtype holds it, rounded up lest the largest number be cut off; never 0. Numbers on a
    GPU are not looked at, which would wait for it: what no code can hold becomes some other one."""
    info = torch.finfo(dtype)
    raised = scale * (1 + info.eps)
    if not scale.is_cpu:
        raised = raised.nan_to_num_(info.max).clamp_max(info.max)
    elif not bool((raised <= info.max).all()):  # false for NaN, too
        if not bool(raised.isfinite().all()):
            raise BindError(f"{name} has NaN or infinite numbers; codes cannot hold them")
        largest = float(scale.max())
        raise BindError(f"{name}: a scale of {largest:.3g} is no {dtype}; use scale_dtype=float32")
    return raised.clamp_min(info.tiny).to(dtype).float()


def _beside(numbers: torch.Tensor, form: CacheForm, dtype: torch.dtype) -> torch.Tensor:
    """[batch, heads, groups of channels, tokens] or [batch, heads, groups of tokens, channels]"""
    if form.by == "token":  # [batch, heads, tokens, groups, 1]
        return numbers.squeeze(4).transpose(2, 3).to(dtype)
    return numbers.squeeze(3).to(dtype)
