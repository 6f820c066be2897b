"""The safetensors container: its header read and checked here, its contents mapped, not copied.

Eight bytes of length, a JSON object of that length, data. Every tensor is checked against the
file's size before anything is read, so that a truncated or hostile file is refused by name.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import torch

from tilewright.frontend.checkpoints.source import Entry
from tilewright.ir.errors import DataError

_LONGEST_HEADER = 100_000_000  # bytes, as the format's own reader allows
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class SafetensorsFile:
    """One file: ``entries`` by name, ``metadata``, and ``tensor(name)``, which shares its memory.

    Raises DataError if header and data do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._size = file.seek(0, 2)
                file.seek(0)
                header, self._start = self._header(file.read(8), file)
                # a private copy of the pages written to: tensors may be changed, the file is not
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        self._offsets: dict[str, int] = {}
        self.entries = {name: self._entry(name, value) for name, value in header.items()}
        self._check_overlaps()

    def _header(self, first: bytes, file: Any) -> tuple[dict[str, Any], int]:
        if len(first) < 8:
            raise DataError(f"{self.path} must be a safetensors file; it has {self._size} bytes")
        length = int.from_bytes(first, "little")
        if length > min(self._size - 8, _LONGEST_HEADER):
            self._refuse_pickle(first)
            raise DataError(
                f"{self.path} must have a header within its {self._size} bytes; it says "
                f"{length} bytes of header: the file is truncated or no safetensors file"
            )
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
        except RecursionError:
            raise DataError(f"{self.path}: its header is nested too deeply") from None
        except ValueError as error:
            raise DataError(f"{self.path} must have a JSON header; {error}") from None
        if not isinstance(header, dict):
            raise DataError(f"{self.path}: its header must be a JSON object")
        return header, 8 + length

    def _refuse_pickle(self, first: bytes) -> None:
        if first[:2] == b"PK" or first[:1] == b"\x80":
            raise DataError(
                f"{self.path} is a pickle of torch.save, not a safetensors file; pickles can run "
                "code and are never read. Save the model as safetensors"
            )

    def _metadata(self, given: Any) -> Mapping[str, str]:
        if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
            raise DataError(f"{self.path}: __metadata__ must map names to text")
        return given

    def _entry(self, name: str, value: Any) -> Entry:
        """Raises DataError unless dtype, shape and place agree and lie within the file."""
        if not isinstance(value, dict):
            raise DataError(f"{self.path}: {name} must be a JSON object; it is {value!r:.60}")
        dtype, shape, place = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise DataError(
                f"{self.path}: {name} must have a dtype known here; it has {dtype!r:.40}"
            )
        if not _sizes(shape) or not _sizes(place) or len(place) != 2:
            raise DataError(
                f"{self.path}: {name} must have a shape and two data_offsets, whole numbers from "
                f"0; they are {shape!r:.60} and {place!r:.60}"
            )
        begin, end = place
        held = self._size - self._start
        if not begin <= end <= held:
            raise DataError(
                f"{self.path}: {name} must lie within the {held} bytes of data; it is said to be "
                f"at {begin} to {end}: the file is truncated"
            )
        nbytes = math.prod(shape) * torch.empty(0, dtype=_DTYPES[dtype]).element_size()
        if nbytes != end - begin:
            raise DataError(
                f"{self.path}: {name} as {dtype} {shape} must take {nbytes} bytes; it has "
                f"{end - begin}"
            )
        self._offsets[name] = self._start + begin
        return Entry(name, dtype, tuple(shape), nbytes, self.path.name)

    def _check_overlaps(self) -> None:
        some = (e for e in self.entries.values() if e.nbytes)
        placed = sorted((self._offsets[e.name], e.nbytes, e.name) for e in some)
        for (at, size, name), (following, _, other) in pairwise(placed):
            if at + size > following:
                raise DataError(f"{self.path}: {name} and {other} must not overlap; they do")

    def tensor(self, name: str) -> torch.Tensor:
        """The contents of a tensor; writing to it does not change the file."""
        entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        if not entry.count:
            return torch.empty(entry.shape, dtype=dtype)
        at = self._offsets[name]
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.nbytes, offset=at)
        if at % torch.empty(0, dtype=dtype).element_size():
            flat = flat.clone()  # views need aligned memory
        return flat.view(dtype).view(entry.shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return made


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in value
    )
