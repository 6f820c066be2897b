"""What a checkpoint's files hold: names, shapes and dtypes at once, contents on demand.

Formats read through this; the containers (safetensors, GGUF, ONNX) fill it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tilewright.ir.errors import DataError

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Entry:
    """One stored tensor. ``dtype`` is safetensors' name (``I32``, ``F16``) or GGUF's (``Q4_K``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str = ""

    def __post_init__(self) -> None:
        """Raises DataError for a name that would write something else than itself to a terminal."""
        if not self.name.isprintable():
            raise DataError(f"{self.file}: names must be printable; {self.name!a} is not")

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Source:
    """The tensors of a checkpoint, and what its configuration says of their quantisation.

    ``quantization`` is config.json's ``quantization_config`` or what stands for it, {} if there is
    none. ``details`` holds what only one container has (the nodes of an ONNX graph).
    """

    path: Path
    container: str  # "safetensors", "gguf", "onnx"
    entries: Mapping[str, Entry]
    load: Callable[[str], torch.Tensor]
    quantization: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def bases(self, suffix: str) -> Iterator[str]:
        """What comes before ``suffix`` in the names that end with it."""
        for name in self.entries:
            if name.endswith(suffix):
                yield name[: -len(suffix)]

    def entry(self, name: str, why: str) -> Entry:
        """The entry of a tensor that a format needs. Raises DataError if it is missing."""
        if name not in self.entries:
            raise DataError(f"{name} is missing; {why}")
        return self.entries[name]

    def expect(
        self,
        name: str,
        dtypes: Sequence[str],
        shape: Sequence[int | None] | None = None,
        why: str = "",
    ) -> Entry:
        """The entry of a tensor, which has one of ``dtypes`` and this shape (None: any size).

        Raises DataError naming the tensor, what was expected and what was found.
        """
        entry = self.entry(name, why or f"it must be {' or '.join(dtypes)} {_sizes(shape)}")
        fits = shape is None or (
            len(shape) == len(entry.shape)
            and all(want in (None, size) for want, size in zip(shape, entry.shape, strict=True))
        )
        if entry.dtype not in dtypes or not fits:
            reason = f" ({why})" if why else ""
            raise DataError(
                f"{name} must be {' or '.join(dtypes)} {_sizes(shape)}{reason}; it is {entry}"
            )
        return entry

    def tensor(self, name: str) -> torch.Tensor:
        """The contents of a tensor, on the CPU; they may share the file's memory."""
        return self.load(name)

    def finite(self, name: str, what: str = "scales") -> torch.Tensor:
        """The contents of a float tensor without NaN and infinities. Raises DataError."""
        values = self.load(name)
        wide = values.to(torch.float32)
        if not bool(torch.isfinite(wide).all()):
            wrong = torch.isfinite(wide).logical_not_()
            at = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{name} must hold finite {what}; {int(wrong.sum())} of {wide.numel()} are not, "
                f"the first at {at}: {float(wide[tuple(at)])}"
            )
        return values


def _sizes(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of any shape"
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
