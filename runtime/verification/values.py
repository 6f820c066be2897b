"""Inputs by description: what numbers an input holds and how it lies in memory, from a seed.

An input is described by a text such as ``normal``, ``below:7`` or ``normal,strides=1x64,offset=2``:
a kind of numbers, then strides in elements (0: one element for the whole dimension) and the place
of the first element, which is not 0 for a slice. The numbers follow from the seed and the input's
position alone, never from its strides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tilewright.ir.dtypes import DType
from tilewright.ir.errors import SettingError
from tilewright.runtime.kernel import TORCH_DTYPES

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], Any]
MOST_ELEMENTS = 1 << 28  # of the memory that strides span
BYTE_SUMS = "bytesums:"
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3.4e38)


@dataclass(frozen=True)
class InputSpec:
    """``values``: a kind with its numbers; ``strides``: in elements, None for contiguous."""

    values: str = "normal"
    strides: Shape | None = None
    offset: int = 0

    def __str__(self) -> str:
        out = self.values
        if self.strides is not None:
            out += f",strides={'x'.join(map(str, self.strides)) or '-'}"
        return out + (f",offset={self.offset}" if self.offset else "")


_SPEC = re.compile(
    r"([a-z]+(?::-?[0-9.e+-]+){0,2})(?:,strides=(-|\d{1,10}(?:x\d{1,10})*))?(?:,offset=(\d{1,10}))?",
    re.ASCII,
)


def parse_spec(text: str) -> InputSpec:
    """The description that ``str`` of one gives. Raises SettingError."""
    found = _SPEC.fullmatch(text.replace(" ", ""))
    if found is None or found[1].split(":")[0] not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise SettingError(
            f"input {text!r}: write a kind of numbers and how they lie, such as "
            f"normal,strides=1x64,offset=2; kinds: {known}"
        )
    strides = None
    if found[2] is not None:
        strides = () if found[2] == "-" else tuple(map(int, found[2].split("x")))
    return InputSpec(found[1], strides, int(found[3] or 0))


def make_input(
    spec: InputSpec, shape: Shape, dtype: DType, seed: int, position: int
) -> torch.Tensor:
    """The tensor of a description. Raises SettingError if it does not fit the shape."""
    rng = np.random.default_rng([seed, position])
    strides = spec.strides
    if strides is not None and len(strides) != len(shape):
        raise SettingError(f"input {spec}: {len(strides)} strides for {len(shape)} dimensions")
    # a dimension of stride 0 has one number
    drawn = (
        shape
        if strides is None
        else tuple(min(n, 1) if s == 0 else n for n, s in zip(shape, strides, strict=True))
    )
    numbers = _numbers(spec, drawn, dtype, rng)
    if strides is None and not spec.offset:
        return numbers
    strides = numbers.stride() if strides is None else strides
    return _placed(numbers, shape, strides, spec)


def _numbers(spec: InputSpec, shape: Shape, dtype: DType, rng: np.random.Generator) -> torch.Tensor:
    name, *arguments = spec.values.split(":")
    try:
        values = KINDS[name](*map(float, arguments))(rng, shape)
    except (TypeError, ValueError) as error:
        raise SettingError(f"input {spec}: {error}") from None
    wanted = TORCH_DTYPES[str(dtype)]
    array = np.asarray(values)
    if dtype.is_int and array.dtype.kind == "f" and name == "constant":
        array = array.astype(np.int64)
    if dtype.is_int and array.dtype.kind == "f":
        raise SettingError(f"input {spec}: {name} gives floats, the input holds {dtype}")
    if dtype.is_int:
        array = dtype.round(array)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(shape).to(wanted)


def _placed(numbers: torch.Tensor, shape: Shape, strides: Shape, spec: InputSpec) -> torch.Tensor:
    """A view of these strides into memory whose other elements are poison."""
    last = spec.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
    if last >= MOST_ELEMENTS:
        raise SettingError(f"input {spec}: spans {last} elements, more than {MOST_ELEMENTS}")
    poison = float("nan") if numbers.dtype.is_floating_point else 1
    memory = torch.full((last + 1,), poison, dtype=numbers.dtype)
    view = memory.as_strided(shape, strides, spec.offset)
    if numbers.numel():
        memory.as_strided(numbers.shape, strides, spec.offset).copy_(numbers)
    return view


def _scaled(scale: float) -> Draw:
    return lambda rng, shape: rng.standard_normal(shape) * scale


def _normal(scale: float = 1.0) -> Draw:
    """Standard normal numbers, times ``scale``."""
    return _scaled(scale)


def _mixed(bits: float = 12) -> Draw:
    """Normal numbers times powers of two from ``-bits`` to ``bits``."""
    return lambda rng, shape: rng.standard_normal(shape) * 2.0 ** rng.uniform(-bits, bits, shape)


def _odd(share: float = 0.1) -> Draw:
    """Normal numbers, a share of them replaced by infinities, NaN, zeros, denormal numbers."""

    def draw(rng: np.random.Generator, shape: Shape) -> Any:
        special = rng.choice(np.array(SPECIAL), shape)
        return np.where(rng.random(shape) < share, special, rng.standard_normal(shape))

    return draw


def _masking(share: float = 0.3) -> Draw:
    """Zeros, a share of them -inf: a mask to be added."""
    return lambda rng, shape: np.where(rng.random(shape) < share, -np.inf, 0.0)


def _below(number: float = 8) -> Draw:
    """Integers from 0 to ``number`` (not included; 0 if it is 0)."""
    return _between(0, max(1.0, number))


def _between(low: float, high: float) -> Draw:
    """Integers from ``low`` to ``high`` (not included)."""
    return lambda rng, shape: rng.integers(int(low), int(high), shape)


def _true(share: float = 0.75) -> Draw:
    """Booleans, a share of them true."""
    return lambda rng, shape: rng.random(shape) < share


def _bits() -> Draw:
    """32-bit words of any bits."""
    return lambda rng, shape: rng.integers(-(2**31), 2**31, shape)


def _constant(number: float) -> Draw:
    """One number everywhere."""
    return lambda rng, shape: np.full(shape, number)


KINDS: dict[str, Callable[..., Draw]] = {
    "normal": _normal,
    "mixed": _mixed,
    "odd": _odd,
    "masking": _masking,
    "whole": lambda: lambda rng, shape: rng.integers(-2, 3, shape).astype(np.float64),
    "positive": lambda: lambda rng, shape: rng.uniform(0.5, 2, shape),
    "below": _below,
    "between": _between,
    "bits": _bits,
    "true": _true,
    "constant": _constant,
    "bytesums": lambda *_: _constant(0),  # made from another input: see make_inputs
}


def default_spec(dtype: DType) -> InputSpec:
    """What an input holds of which nothing is said."""
    if dtype.kind == "bool":
        return InputSpec("true")
    return InputSpec("normal" if dtype.is_float else "below")


def make_inputs(
    shapes: Sequence[tuple[Shape, DType]], specs: Sequence[InputSpec], seed: int
) -> list[torch.Tensor]:
    """All inputs of a call."""
    out: list[torch.Tensor] = []
    for at, ((shape, dtype), spec) in enumerate(zip(shapes, specs, strict=True)):
        if spec.values.startswith(BYTE_SUMS):
            out.append(_byte_sums(spec, shape, out))
        else:
            out.append(make_input(spec, shape, dtype, seed, at))
    return out


def _byte_sums(spec: InputSpec, shape: Shape, before: Sequence[torch.Tensor]) -> torch.Tensor:
    """``bytesums:AT:GROUP``: sums of the signed bytes in the words of the input at place AT, of
    GROUP / 4 words each: what goes with activations in bytes. i32."""
    _, at, group = spec.values.split(":")
    words = before[int(at)].numpy()
    each = (
        np.ascontiguousarray(words.astype("<i4"))
        .view(np.int8)
        .reshape(*shape, -1 if words.size else int(group))
    )
    return torch.from_numpy(each.sum(-1, dtype=np.int32))
