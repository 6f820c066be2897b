"""Routing traces: which experts each token used in each layer, from files and as counts.

A trace file holds ``ids``, integers [tokens, layers] (top-1) or [tokens, layers, k], and the number
of experts of a layer. Three containers, none of which can hold code:

- ``.safetensors``: tensor ``ids``; ``experts`` in the metadata, as text;
- ``.npz``: arrays ``ids`` and ``experts``, read without pickle;
- ``.json``: ``{"experts": 64, "ids": [[…], …]}``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import DataError

Ints = NDArray[np.int64]
MOST_BYTES = 4 << 30  # of a trace, unpacked; more is no trace but a mistake
MOST_EXPERTS = 1 << 14  # counts are experts x experts per layer
SUFFIXES = (".safetensors", ".npz", ".json")


@dataclass(frozen=True)
class Trace:
    """``ids`` int32 [tokens, layers, k]: each token's experts, 0 to ``experts`` - 1.

    Raises DataError for another shape or dtype, no tokens, fewer than one layer, or an id out of
    range.
    """

    ids: NDArray[np.integer[Any]]
    experts: int

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"a trace's ids must be integers, not {ids.dtype}")
        if ids.ndim == 2:
            ids = ids[:, :, None]
        if ids.ndim != 3 or 0 in ids.shape:
            raise DataError(
                "a trace's ids must be [tokens, layers] or [tokens, layers, k], none of them 0, "
                f"not {list(self.ids.shape)}"
            )
        if not 1 <= self.experts <= MOST_EXPERTS:
            raise DataError(f"a trace of {self.experts} experts; it may be 1 to {MOST_EXPERTS:,}")
        wrong = np.argwhere((ids < 0) | (ids >= self.experts))
        if len(wrong):
            token, layer, choice = (int(at) for at in wrong[0])
            raise DataError(
                f"ids[{token}, {layer}, {choice}] is {ids[token, layer, choice]}, but this trace's "
                f"experts are 0 to {self.experts - 1} ({len(wrong)} of {ids.size} are out of range)"
            )
        object.__setattr__(self, "ids", np.ascontiguousarray(ids, dtype=np.int32))

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[0])

    @property
    def layers(self) -> int:
        return int(self.ids.shape[1])

    @property
    def choices(self) -> int:
        """k: how many experts a token uses in a layer."""
        return int(self.ids.shape[2])

    @property
    def pairs(self) -> int:
        """What ``affinity`` counts for one token and one step between layers: k²."""
        return self.choices**2

    def affinity(self) -> Ints:
        """int64 [layers - 1, experts, experts]: how often a token that used i went on to use j.

        With k > 1, every one of a token's choices goes on to every one of the next layer: k²
        counts. The size does not grow with the tokens, unlike the variables of ExFlow's program.
        """
        size = self.experts
        counts = np.zeros((self.layers - 1, size * size), dtype=np.int64)
        for layer in range(self.layers - 1):
            here = self.ids[:, layer].astype(np.int64) * size
            for choice in range(self.choices):
                codes = here[:, choice, None] + self.ids[:, layer + 1]
                counts[layer] += np.bincount(codes.ravel(), minlength=size * size)
        return counts.reshape(-1, size, size)

    def split(self, share: float) -> tuple[Trace, Trace]:
        """The first tokens and the last ``share`` of them, to choose with and to judge by."""
        cut = self.tokens - round(self.tokens * share)
        if not 0 < cut < self.tokens:
            raise DataError(f"{self.tokens} tokens cannot be split with {share} of them held out")
        return Trace(self.ids[:cut], self.experts), Trace(self.ids[cut:], self.experts)


def read_trace(path: Path, experts: int | None = None) -> Trace:
    """The trace in a file. ``experts`` if the file does not say how many.

    Raises DataError that names the file, what was expected and what was found.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".json": _json}
    if path.suffix not in readers:
        raise DataError(f"{path}: a trace is a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: more than {MOST_BYTES >> 30} GiB, too large for a trace")
    try:
        ids, stated = readers[path.suffix](path)
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from None
    count = stated if experts is None else experts
    if count is None:
        raise DataError(f"{path}: does not say how many experts a layer has; name them: --experts")
    if stated is not None and count != stated:
        raise DataError(f"{path}: is a trace of {stated} experts, not of {count}")
    try:
        return Trace(ids, count)
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from None


def write_trace(trace: Trace, path: Path) -> None:
    """Writes a trace in the container that the file's suffix names. Raises DataError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({"ids": trace.ids}, path, {"experts": str(trace.experts)})
        elif path.suffix == ".npz":
            np.savez_compressed(path, ids=trace.ids, experts=np.int64(trace.experts))
        elif path.suffix == ".json":
            data = {"experts": trace.experts, "ids": trace.ids.tolist()}
            path.write_text(json.dumps(data) + "\n", encoding="utf-8")
        else:
            raise DataError(f"{path}: a trace is a file ending in {', '.join(SUFFIXES)}")
    except OSError as error:
        raise DataError(f"{path}: {error}") from None


def _safetensors(path: Path) -> tuple[NDArray[Any], int | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            found = list(opened.keys())
            if "ids" not in found:
                raise DataError(f"must hold a tensor 'ids'; it holds {_names(found)}")
            said = (opened.metadata() or {}).get("experts")
            return opened.get_tensor("ids"), None if said is None else _count(said)
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"is no readable safetensors file: {error}") from None


def _npz(path: Path) -> tuple[NDArray[Any], int | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise DataError(f"unpacks to {size:,} bytes, too large for a trace")
        with np.load(path, allow_pickle=False) as arrays:
            if "ids" not in arrays:
                raise DataError(f"must hold an array 'ids'; it holds {_names(list(arrays))}")
            experts = arrays["experts"].tolist() if "experts" in arrays else None
            return arrays["ids"], None if experts is None else _count(experts)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"is no readable .npz file: {error}") from None


def _json(path: Path) -> tuple[NDArray[Any], int | None]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"is no readable JSON: {error}") from None
    if not isinstance(data, Mapping) or "ids" not in data:
        raise DataError('must hold a JSON object {"experts": …, "ids": [[…], …]}')
    try:
        ids = np.asarray(data["ids"])
    except (ValueError, OverflowError):
        raise DataError("'ids' must be lists of one length each: [tokens, layers, k]") from None
    return ids, _count(data["experts"]) if "experts" in data else None


def _count(said: object) -> int:
    """A number of experts as files state it. Raises DataError."""
    try:
        return int(said) if isinstance(said, str | int) else int("")
    except ValueError:
        raise DataError(f"'experts' must be a whole number, not {said!r}") from None


def _names(found: list[str]) -> str:
    return ", ".join(map(repr, found[:5])) if found else "nothing"
