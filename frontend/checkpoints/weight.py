"""A quantised weight found in a checkpoint: what it is, and how to get it as a QuantizedTensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from tilewright.frontend.checkpoints.gptq_zeros import Evidence
from tilewright.frontend.checkpoints.source import Source
from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import DataError, TilewrightError
from tilewright.runtime.quantized.tensor import QuantizedTensor


@dataclass(frozen=True)
class Parts:
    """What a format's decoder finds; ``QuantizedTensor.from_codes`` says what each field means.

    ``axis=-2``: codes, scales and order are those of the transposed weight [..., K, N].
    """

    dtype: str
    group: int | str
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    zero_point: int | None = None
    tensor_scale: float = 1.0
    scale_dtype: str | None = None
    order: torch.Tensor | None = None
    axis: int = -1

    def tensor(self, name: str) -> QuantizedTensor:
        """Packs them; whole zeros that are all the same become one number.

        Raises DataError, whose message begins with ``name``.
        """
        zeros, zero_point = self.zeros, self.zero_point
        if zeros is not None and not zeros.is_floating_point() and zeros.numel():
            low, high = (int(v) for v in torch.aminmax(zeros))
            if low == high:
                zeros, zero_point = None, low
        made = QuantizedTensor.from_codes(
            self.codes,
            self.scales,
            zeros,
            dtype=self.dtype,
            group=self.group,
            zero_point=zero_point,
            tensor_scale=self.tensor_scale,
            scale_dtype=self.scale_dtype,
            order=self.order,
            name=name,
        )
        if self.axis == -1:
            return made
        *lead, rows, length = made.shape
        return replace(made, shape=(*lead, length, rows), axis=-2)


@dataclass(frozen=True)
class Weight:
    """A quantised weight: its facts from the headers, and ``read`` for its contents.

    ``tensors`` are the names of the stored tensors it is made of. ``zeros`` says in words what is
    subtracted from a code. ``problem`` is why it cannot be read; the facts may be empty then.
    """

    name: str
    format: str
    tensors: tuple[str, ...]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    group: int = 0  # 0: one scale in all
    zeros: str = ""
    note: str = ""
    problem: str = ""
    zero_rule: Callable[[], Evidence] | None = None  # how zeros are read, where that is in doubt
    decode: Callable[[], Parts | QuantizedTensor] | None = None

    def read(self) -> QuantizedTensor:
        """The weight [..., N, K]. Raises DataError naming the tensor that is wrong."""
        if self.problem or self.decode is None:
            raise DataError(f"{self.name}: {self.problem or 'no decoder'}")
        made = self.decode()
        return made if isinstance(made, QuantizedTensor) else made.tensor(self.name)

    @property
    def bits(self) -> int:
        """Bits of a code; 0 if it could not be found out."""
        return TABLE[self.dtype].bits if self.dtype in TABLE else 0


Examine = Callable[[Source, str], Weight]


def examined(
    source: Source, bases: Iterator[str], suffixes: Sequence[str], label: str, examine: Examine
) -> Iterator[Weight]:
    """``examine(source, base)`` of every base; what it refuses is a weight with that problem."""
    for base in bases:
        try:
            yield examine(source, base)
        except TilewrightError as error:
            there = tuple(base + s for s in suffixes if base + s in source)
            yield Weight(base, label, there, problem=error.message)
