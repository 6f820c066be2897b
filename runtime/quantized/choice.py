"""Choosing scales and zeros of groups [n, groups, codes of a group]: min-max, least squares, HQQ.

Everything is f32; a number x becomes ``y = x / scale + zero`` in units of codes, rounded to a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from tilewright.ir.dtypes import DType
from tilewright.ir.errors import SettingError
from tilewright.runtime.quantized.numbers import encode, round_to_codes
from tilewright.runtime.quantized.parameters import held_scales, largest_scale, scale_values

METHODS = ("minmax", "mse", "hqq", "gptq")
LEAST = {"f16": 2.0**-24, "bf16": 2.0**-126, "f32": 2.0**-126, "e8m0": 2.0**-126, "f8e4m3": 2.0**-9}
# Float zeros are kept in f16, whose steps up to 1024 are at most half a code: no group may be so
# narrow and so far from 0 that its zero lies further out.
FARTHEST = 512.0
HQQ_ROUNDS = 10


@dataclass(frozen=True)
class Settings:
    """What every group is rounded to: codes of ``dtype``, scales in ``scale``, and zeros.

    ``zero`` is "none" (constant), "int" (whole, in units of stored codes) or "float".
    """

    dtype: DType
    zero: str
    scale: DType
    method: str

    @staticmethod
    def of(
        dtype: DType, symmetric: bool | None, zero: str | None, scale: DType, method: str
    ) -> Settings:
        """The settings that options mean. Raises SettingError for those that exclude each other."""
        if method not in METHODS:
            raise SettingError(f"method={method!r} must be one of {', '.join(METHODS)}")
        if zero not in (None, "int", "float"):
            raise SettingError(f"zero={zero!r} must be 'int', 'float' or None")
        if symmetric is None:
            plain = zero is None and method != "hqq"
            symmetric = plain and (dtype.kind != "uint" or scale.name == "e8m0")
        if symmetric:
            if zero is not None or method == "hqq":
                asked = "method='hqq'" if zero is None else f"zero={zero!r}"
                raise SettingError(f"{asked} needs symmetric=False: a symmetric zero is fixed")
            return Settings(dtype, "none", scale, method)
        zero = zero or ("int" if dtype.is_int and method != "hqq" else "float")
        if zero == "int" and (method == "hqq" or not dtype.is_int):
            asked = "method='hqq'" if method == "hqq" else f"dtype {dtype}"
            raise SettingError(f"{asked} has zeros that are no whole codes: use zero='float'")
        if scale.name == "e8m0":
            raise SettingError("scale_dtype='e8m0' needs symmetric=True: MX formats have no zeros")
        return Settings(dtype, zero, scale, method)

    @property
    def zero_point(self) -> int:
        """The constant zero in units of stored codes."""
        return 1 << self.dtype.bits - 1 if self.dtype.is_int and self.zero == "none" else 0

    @cached_property
    def reach(self) -> tuple[float, float]:
        """Between which numbers of steps from the zero (from code 0, if every group has its own)
        rounding is off by half a step at most."""
        if self.dtype.is_int:
            half = 0.5 if self.zero == "none" else 0.0
            return -self.zero_point - half, (1 << self.dtype.bits) - 1 - self.zero_point + half
        values = self.dtype.codec.values
        finite = values[abs(values) < math.inf]
        return float(finite.min()), float(finite.max())

    @property
    def some_value(self) -> float:
        """A value that a code has: that of code 0 for integers, else the one nearest 0."""
        return self.reach[0] if self.dtype.is_int else float(self.dtype.round(0.0))


@dataclass(frozen=True)
class Chosen:
    """Scales as held and as f32 (with the tensor's scale), f32 zeros or the constant, all
    [n, groups]."""

    held: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | float
    settings: Settings

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 codes of groups [n, groups, g]."""
        return encode(self.in_codes(x), self.settings.dtype)

    def in_codes(self, x: torch.Tensor) -> torch.Tensor:
        """x in units of codes, not rounded."""
        y = x * self.scale.reciprocal().unsqueeze(-1)
        if isinstance(self.zero, torch.Tensor):
            return y.add_(self.zero.unsqueeze(-1))
        return y.add_(self.zero) if self.zero else y

    def column(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For one group: codes of x [n] and what they stand for."""
        y = self.in_codes(x[:, None, None])
        codes = encode(y, self.settings.dtype)
        zero = self.zero.unsqueeze(-1) if isinstance(self.zero, torch.Tensor) else self.zero
        values = round_to_codes(y, self.settings.dtype).sub_(zero).mul_(self.scale.unsqueeze(-1))
        return codes.view(-1), values.view(-1)

    def error(self, x: torch.Tensor) -> torch.Tensor:
        """The root of the sum of squared errors of each group, [n, groups]."""
        y = self.in_codes(x)
        off = round_to_codes(y, self.settings.dtype).sub_(y)
        size: torch.Tensor = torch.linalg.vector_norm(off, dim=-1)
        return size * self.scale

    def better(self, other: Chosen, mine: torch.Tensor, theirs: torch.Tensor) -> Chosen:
        """For each group what has the smaller error, this one if equal."""
        take = theirs < mine
        zero = self.zero
        if isinstance(zero, torch.Tensor) and isinstance(other.zero, torch.Tensor):
            zero = torch.where(take, other.zero, zero)
        held, scale = (
            torch.where(take, b, a) for a, b in ((self.held, other.held), (self.scale, other.scale))
        )
        return Chosen(held, scale, zero, self.settings)

    def with_scale(self, scale: torch.Tensor, tensor_scale: float) -> Chosen:
        """The same zeros with other scales, rounded as they are held, if need be to the largest."""
        row = self.settings.scale
        held, rounded = as_held((scale / tensor_scale).clamp(max=largest_scale(row)), row)
        return replace(self, held=held, scale=rounded * tensor_scale)


def as_held(scale: torch.Tensor, row: DType) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive scales as held, and as f32 again; at least what has an inverse."""
    held = held_scales(scale.clamp(min=LEAST[row.name]), row)
    return held, scale_values(held, row)


def choose(
    x: torch.Tensor,
    settings: Settings,
    tensor_scale: float,
    limits: tuple[torch.Tensor, torch.Tensor],
) -> Chosen:
    """Scales and zeros of groups x [n, groups, g] with least and largest values ``limits``."""
    chosen = min_max(*limits, settings, tensor_scale)
    if settings.method == "minmax":
        return chosen
    if settings.zero == "float" and not settings.dtype.is_int:
        # codes are densest around 0, where numbers often are, too
        even = min_max(*limits, replace(settings, zero="none"), tensor_scale)
        even = replace(even, zero=torch.zeros_like(even.scale), settings=settings)
        chosen = chosen.better(even, chosen.error(x), even.error(x))
    chosen = least_squares(x, chosen, tensor_scale)
    return half_quadratic(x, chosen) if settings.method == "hqq" else chosen


def min_max(
    low: torch.Tensor, high: torch.Tensor, settings: Settings, tensor_scale: float
) -> Chosen:
    """The scale that just covers a group. A constant zero covers 0, too, and so does a whole one.

    Scales in powers of two follow OCP MX 1.0, section 6.3: the largest power in the group over the
    largest power of the dtype, so that numbers up to twice too large saturate.
    """
    least, most = settings.reach
    if settings.zero == "none":
        scale = torch.maximum(high / most, low / least) if least < 0 else high / most
        if settings.scale.name == "e8m0":
            size = torch.maximum(high.abs(), low.abs())
            scale = torch.exp2(_power(size) - math.floor(math.log2(max(most, -least))))
    else:
        if settings.zero == "int":
            low, high = low.clamp(max=0), high.clamp(min=0)
        middle = (low / 2 + high / 2).abs()
        scale = (high / (most - least)) - (low / (most - least))
        scale = torch.where(high > low, torch.maximum(scale, middle / FARTHEST), middle)
    scale = torch.where(scale > 0, scale / tensor_scale, 1.0)
    held, rounded = as_held(scale, settings.scale)
    rounded = rounded * tensor_scale
    if settings.zero == "none":
        return Chosen(held, rounded, float(settings.zero_point), settings)
    if settings.zero == "int":
        zero = (least - low / rounded).round_().clamp_(least, most)
        return Chosen(held, rounded, zero, settings)
    # the middle of a group gets the middle of the codes, a single number one of them
    centre = torch.where(high > low, (least + most) / 2, settings.some_value)
    zero = centre - (low / 2 + high / 2) / rounded
    return Chosen(held, rounded, _half(zero), settings)


def _half(zero: torch.Tensor) -> torch.Tensor:
    """Float zeros as they are held."""
    return zero.to(torch.float16).to(torch.float32)


def _power(size: torch.Tensor) -> torch.Tensor:
    """floor(log2(size)), exact."""
    return (torch.frexp(size)[1] - 1).to(torch.float32)


def least_squares(x: torch.Tensor, start: Chosen, tensor_scale: float) -> Chosen:
    """Shrinks the range of each group about its zero to where the squared error is least, then
    takes the scale that is best for the codes found, if it is better.

    Never worse than ``start``."""
    best, error = start, start.error(x)
    for factor in _factors(start.settings):
        tried = start.with_scale(start.scale * factor, tensor_scale)
        found = tried.error(x)
        best, error = best.better(tried, error, found), torch.minimum(error, found)
    if start.settings.scale.name == "e8m0":
        return best
    y = round_to_codes(best.in_codes(x), start.settings.dtype)
    y.sub_(best.zero.unsqueeze(-1) if isinstance(best.zero, torch.Tensor) else best.zero)
    below = torch.linalg.vector_norm(y, dim=-1).square_()
    fitted = y.mul_(x).sum(-1) / below
    fitted = torch.where((below > 0) & (fitted > 0), fitted, best.scale)
    tried = best.with_scale(fitted, tensor_scale)
    return best.better(tried, error, tried.error(x))


def _factors(settings: Settings) -> list[float]:
    """By which to shrink ranges: the fewer codes, the further it may pay."""
    if settings.scale.name == "e8m0":
        return [2.0, 0.5]
    if not settings.dtype.is_int or settings.dtype.bits >= 6:
        return [0.95, 0.9, 0.8]
    if settings.dtype.bits >= 4:
        return [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6]
    return [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


def half_quadratic(x: torch.Tensor, start: Chosen) -> Chosen:
    """Zeros moved by the mean error, clipped numbers counting less: HQQ (Badri and Shaji, 2023).

    A round splits every error into a sparse part, by the proximal step of |e| with a threshold of
    one code, and the rest, whose mean the zero follows. The zero of each group with the least
    squared error is kept, so the result is never worse than ``start``.
    """
    zero, settings = start.zero, start.settings
    assert isinstance(zero, torch.Tensor)
    best, error = zero, torch.full_like(zero, math.inf)
    base = x * start.scale.reciprocal().unsqueeze(-1)
    for _ in range(HQQ_ROUNDS):
        y = base + zero.unsqueeze(-1)
        off = round_to_codes(y, settings.dtype).sub_(y)
        found = torch.linalg.vector_norm(off, dim=-1)
        best, error = torch.where(found < error, zero, best), torch.minimum(error, found)
        zero = _half(zero + off.clamp_(-1, 1).mean(-1))
    return replace(start, zero=best)
