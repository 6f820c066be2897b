"""The GGUF container: its header walked here, within bounds; gguf_blocks.py decodes the blocks.

The ``gguf`` package gives the table of block types. Its reader is not used: it allocates as many
items as a header claims, without asking how long the file is.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tilewright.frontend.checkpoints.gguf_blocks import BLOCKS, decode
from tilewright.frontend.checkpoints.source import Entry, Source
from tilewright.frontend.checkpoints.weight import Weight, examined
from tilewright.ir.errors import BackendMissingError, DataError, UnsupportedError

MAGIC = b"GGUF"
PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_KEPT = 64  # items of an array that are kept; vocabularies are skipped
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def find(source: Source) -> Iterator[Weight]:
    """The quantised tensors of a GGUF file; nothing in other containers."""
    if source.container != "gguf":
        return
    named = (name for name, entry in source.entries.items() if entry.dtype not in PLAIN)
    yield from examined(source, named, ("",), "gguf", _examine)


def _examine(source: Source, name: str) -> Weight:
    entry = source.entries[name]
    kind = BLOCKS.get(entry.dtype)
    if kind is None:
        raise UnsupportedError(f"blocks of type {entry.dtype} are not read")
    if len(entry.shape) < 2 or not entry.count:
        raise DataError(f"{name} must be [..., N, K], none of them 0; it is {entry}")
    return Weight(
        name=name.removesuffix(".weight"),
        format=f"gguf {entry.dtype}",
        tensors=(name,),
        dtype=kind.dtype_name(),
        shape=entry.shape,
        group=kind.group,
        zeros=kind.zeros,
        note=kind.note,
        decode=lambda: decode(name, kind, source.tensor(name), entry.shape),
    )


def open_gguf(path: Path) -> Source:
    """A GGUF file, or all parts of a split one. Raises DataError."""
    entries: dict[str, Entry] = {}
    files: dict[str, _File] = {}
    for part in _parts(path):
        opened = _File(part)
        for name, entry in opened.entries.items():
            if name in entries:
                raise DataError(f"{part}: {name} is also in {entries[name].file}")
            entries[name] = entry
            files[name] = opened
    first = next(iter(files.values()), None)
    details = dict(first.settings) if first is not None else {}
    return Source(path, "gguf", entries, lambda name: files[name].tensor(name), {}, details)


def _parts(path: Path) -> list[Path]:
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    stem, _, count = found.groups()
    if not 0 < int(count) < 10000:
        raise DataError(f"{path} must be one of 1 to 9999 parts; it says {count}")
    names = [path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    missing = [p.name for p in names if not p.is_file()]
    if missing:
        raise DataError(f"{path} is one of {int(count)} parts; missing: {', '.join(missing)}")
    return names


def _type_table() -> dict[int, tuple[str, int, int]]:
    """By number: name, elements and bytes of a block. Raises BackendMissingError."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise BackendMissingError(
            "GGUF files need the package gguf: pip install 'tilewright[checkpoints]'"
        ) from None
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@dataclass
class _Cursor:
    """Reads forward in a file's bytes, never beyond their end."""

    data: mmap.mmap
    path: Path
    at: int = 0

    def take(self, count: int, what: str) -> bytes:
        left = len(self.data) - self.at
        if count > left:
            raise DataError(
                f"{self.path} must go on with {what}, {count} bytes; {left} are left: the file is "
                "truncated or damaged"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str) -> str:
        return self.take(self.number("Q", what), what).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth > 4:
            raise DataError(f"{self.path}: {what} has the unknown type {kind}")
        inner, count = self.number("I", what), self.number("Q", what)
        if inner in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[inner]}")
            given = self.take(count * size, what)
            kept = min(count, _KEPT)
            return list(struct.unpack(f"<{kept}{_SCALARS[inner]}", given[: kept * size]))
        kept_items = []
        for i in range(count):  # every item takes bytes: the file's end ends this
            item = self.value(inner, what, depth + 1)
            if i < _KEPT:
                kept_items.append(item)
        return kept_items


class _File:
    """One GGUF file: ``settings`` are its key-value pairs, ``entries`` its tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        cursor = _Cursor(self._map, path)
        tensors, pairs = self._counts(cursor)
        self.settings: dict[str, Any] = {}
        for _ in range(pairs):
            key = cursor.text("a setting's name")
            self.settings[key] = cursor.value(cursor.number("I", key), key)
        infos = [self._info(cursor) for _ in range(tensors)]
        alignment = self.settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise DataError(f"{path}: general.alignment must be a power of two; it is {alignment}")
        self._start = -(-cursor.at // alignment) * alignment
        self._offsets: dict[str, int] = {}
        table = _type_table() if infos else {}
        self.entries: Mapping[str, Entry] = dict(self._entry(table, *info) for info in infos)
        if len(self.entries) < len(infos):
            raise DataError(f"{path}: two tensors must not have one name; some have")

    def _counts(self, cursor: _Cursor) -> tuple[int, int]:
        if cursor.take(4, "its mark") != MAGIC:
            raise DataError(f"{self.path} must begin with GGUF; it does not")
        version = cursor.number("I", "its version")
        if version not in (2, 3):
            raise UnsupportedError(
                f"{self.path} must be GGUF of version 2 or 3, little-endian; it says {version}"
            )
        return cursor.number("Q", "the number of tensors"), cursor.number("Q", "of settings")

    def _info(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.text("a tensor's name")
        count = cursor.number("I", name)
        if not 1 <= count <= _MAX_DIMS:
            raise DataError(f"{self.path}: {name} must have 1 to {_MAX_DIMS} axes; it has {count}")
        sizes = [cursor.number("Q", name) for _ in range(count)]
        return name, tuple(reversed(sizes)), cursor.number("I", name), cursor.number("Q", name)

    def _entry(
        self,
        table: Mapping[int, tuple[str, int, int]],
        name: str,
        shape: tuple[int, ...],
        kind: int,
        offset: int,
    ) -> tuple[str, Entry]:
        if kind not in table:
            raise DataError(f"{self.path}: {name} must have a block type known here; it has {kind}")
        label, elements, size = table[kind]
        if shape[-1] % elements:
            raise DataError(
                f"{self.path}: {name} as {label} must have rows of a multiple of {elements}; it is "
                f"{list(shape)}"
            )
        nbytes = size * (shape[-1] // elements)
        for length in shape[:-1]:
            nbytes *= length
        held = len(self._map) - self._start
        if offset + nbytes > held:
            raise DataError(
                f"{self.path}: {name} as {label} {list(shape)} must lie within the {held} bytes of "
                f"data; it is said to be at {offset} to {offset + nbytes}: the file is truncated"
            )
        self._offsets[name] = self._start + offset
        return name, Entry(name, label, shape, nbytes, self.path.name)

    def tensor(self, name: str) -> torch.Tensor:
        """Plain tensors as they are, blocks as uint8 [..., N, bytes of a row]."""
        entry = self.entries[name]
        dtype = PLAIN.get(entry.dtype, torch.uint8)
        if not entry.nbytes:
            return torch.empty(entry.shape if entry.dtype in PLAIN else (0,), dtype=dtype)
        at = self._offsets[name]
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.nbytes, offset=at)
        if at % torch.empty(0, dtype=dtype).element_size():
            flat = flat.clone()
        if entry.dtype in PLAIN:
            return flat.view(dtype).view(entry.shape)
        return flat.view(*entry.shape[:-1], -1)
