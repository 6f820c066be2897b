"""Numbers to codes: the least and the largest of a group decide its scale and zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tilewright.ir.cache_form import CacheForm
from tilewright.ir.errors import BackendMissingError, BindError, UnsupportedError
from tilewright.runtime.bundle.active import bundle_in_use
from tilewright.runtime.determinism import in_force
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.kv_cache.words import split
from tilewright.runtime.locks import GENERATORS

FARTHEST = 8  # a group's values are taken to spread over 1/8 of their magnitude at least


@dataclass(frozen=True)
class Coded:
    """Codes [batch, heads, tokens, width] uint8, scales and zeros as ``CacheForm`` says."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None


def quantise(
    x: torch.Tensor, form: CacheForm, symmetric: bool, scale_dtype: torch.dtype, name: str
) -> Coded:
    """Codes of x [batch, heads, tokens, width]; by channel the tokens are whole groups, but the
    last one may be short. Codes are rounded against scales and zeros as they are stored.

    Symmetric: code - 2^(bits-1) is between -(2^(bits-1) - 1) and 2^(bits-1) - 1, no zeros.
    Raises BindError for NaN and infinities.
    """
    if x.dtype not in FLOATS:
        x = x.float()
    dim = 3 if form.by == "token" else 2
    groups, length = -(-x.shape[dim] // form.group), x.shape[dim]
    short = groups * form.group - length
    if short:  # repeats the last number, which changes neither the least nor the largest
        last = x.narrow(dim, length - 1, 1)
        shape = list(x.shape)
        shape[dim] = short
        x = torch.cat((x, last.expand(shape)), dim)
    parted = split(x, dim, (groups, form.group))
    codes, *beside = _by_kernel(parted, form, symmetric, scale_dtype) or _by_torch(
        parted.float(), form, symmetric, scale_dtype, name
    )
    codes = codes.flatten(dim, dim + 1)
    return Coded(
        codes.narrow(dim, 0, length) if short else codes, *(_beside(each, form) for each in beside)
    )


def _by_kernel(
    x: torch.Tensor, form: CacheForm, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, ...] | None:
    """``_by_torch`` as one kernel; None where there is none, and for numbers that codes cannot
    hold. Bundles hold no such kernels, and take none."""
    if bundle_in_use() is not None or not (x.is_cpu or x.is_cuda):
        return None
    with GENERATORS.lock:
        from tilewright.runtime.kv_cache.coder import coder

    info = torch.finfo(dtype)
    # numbers on a GPU are not looked at, which would wait for it
    limits = 1 + info.eps, info.tiny, info.max, math.inf if x.is_cpu else info.max
    try:
        results = coder(form, symmetric, x.dtype, dtype, limits, in_force())(x)
    except (UnsupportedError, BackendMissingError):
        return None
    return results if not x.is_cpu or float(results[1].amax()) < math.inf else None


def _by_torch(
    x: torch.Tensor, form: CacheForm, symmetric: bool, dtype: torch.dtype, name: str
) -> tuple[torch.Tensor, ...]:
    """Codes, scales and zeros of groups in float32, which run along dimension 4, by channel 3."""
    dim = 4 if form.by == "token" else 3
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    beside = scales_of(low, high, form, symmetric, dtype, name)
    return codes_of(x, form, symmetric, *beside), *beside


def scales_of(
    low: torch.Tensor,
    high: torch.Tensor,
    form: CacheForm,
    symmetric: bool,
    dtype: torch.dtype,
    name: str,
) -> tuple[torch.Tensor, ...]:
    """Scales and, if not ``symmetric``, zeros of groups with these least and largest numbers."""
    if symmetric:
        half = 1 << (form.bits - 1)
        return (_stored(torch.maximum(-low, high) / max(half - 1, 1), dtype, name),)
    size = torch.maximum(high - low, torch.maximum(-low, high) / FARTHEST)
    scale = _stored(size / ((1 << form.bits) - 1), dtype, name)
    return scale, (-low / scale.float()).to(dtype)


def codes_of(
    x: torch.Tensor,
    form: CacheForm,
    symmetric: bool,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """Codes of numbers in float32; scales and zeros as ``scales_of`` gives them."""
    found = x / scale.float()
    if symmetric:
        half = 1 << (form.bits - 1)
        found = found.round_().clamp_(-half, half - 1).add_(half)
    else:
        assert zero is not None, "codes that are not symmetric have zeros"
        found = found.add_(zero.float()).round_().clamp_(0, (1 << form.bits) - 1)
    return found.to(torch.uint8)


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
    return raised.clamp_min(info.tiny).to(dtype)


def _beside(numbers: torch.Tensor, form: CacheForm) -> torch.Tensor:
    """[batch, heads, groups of channels, tokens] or [batch, heads, groups of tokens, channels]"""
    if form.by == "token":  # [batch, heads, tokens, groups, 1]
        return numbers.squeeze(4).transpose(2, 3)
    return numbers.squeeze(3)
