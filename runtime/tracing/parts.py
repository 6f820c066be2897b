"""What one process writes while it is traced, safely against being killed at any moment.

A part is two files in the trace's folder. ``NAME.rows`` gets a line of JSON, written at once, for
every program text and for every row when it first comes. ``NAME.counts`` is mapped memory with a
count and two times for each row: a call changes it in place, and the system keeps it whatever
becomes of the process. Nothing has to be done at the end.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilewright.ir.errors import TraceError
from tilewright.runtime.json_fields import Fields, check_version, parse_object
from tilewright.runtime.tracing.file import merged, read_row, text_hash
from tilewright.runtime.tracing.kernels import Trace, TracedKernel

SCHEMA, VERSION = "tilewright-trace-part", 1
ROWS, COUNTS = ".rows", ".counts"
_COUNT = struct.Struct("<Qdd")  # calls, their seconds, the first call's seconds
# bytes of counters that are mapped at once: whole pages, and no counter in two of them
_CHUNK = 16 * math.lcm(mmap.ALLOCATIONGRANULARITY, _COUNT.size)
_PER_CHUNK = _CHUNK // _COUNT.size
MOST_ROWS = 1 << 16


class Part:
    """The files of this process. OSError if they cannot be written, a full disk included: room for
    the counters is taken beforehand, so that counting never fails."""

    def __init__(self, folder: Path, machine: dict[str, str]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._counts = self._open(folder / f"{name}{COUNTS}", os.O_RDWR)
        try:
            self._rows = self._open(folder / f"{name}{ROWS}", os.O_WRONLY | os.O_APPEND)
        except OSError:
            os.close(self._counts)
            raise
        self._file = os.fstat(self._rows)
        self._maps: list[mmap.mmap] = []
        self._texts: set[str] = set()
        self._used = 0
        self._line({"schema": SCHEMA, "version": VERSION, "machine": machine})

    def row(self, kernel: TracedKernel) -> int:
        """A new row's number. OSError if it cannot be written."""
        number, self._used = self._used, self._used + 1  # first: a signal may bring another row
        while number // _PER_CHUNK >= len(self._maps):
            at = len(self._maps) * _CHUNK
            os.posix_fallocate(self._counts, at, _CHUNK)
            self._maps.append(mmap.mmap(self._counts, _CHUNK, offset=at))
        digest = text_hash(kernel.program)
        if digest not in self._texts:
            self._line({"text": kernel.program})
            self._texts.add(digest)
        facts = {**kernel.to_dict(), "program": digest}
        self._line({"row": number, **facts, "count": 0, "seconds": 0.0, "first_seconds": 0.0})
        return number

    def count(self, row: int, seconds: float) -> None:
        """One more call. The caller sees to it that no other thread counts meanwhile."""
        chunk, at = self._maps[row // _PER_CHUNK], row % _PER_CHUNK * _COUNT.size
        calls, total, first = _COUNT.unpack_from(chunk, at)
        _COUNT.pack_into(chunk, at, calls + 1, total + seconds, first if calls else seconds)

    def close(self) -> None:
        """Gives the files back."""
        for each in self._maps:
            each.close()
        os.close(self._rows)
        os.close(self._counts)

    @staticmethod
    def _open(path: Path, how: int) -> int:
        return os.open(path, how | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _line(self, value: dict[str, Any]) -> None:
        if not os.path.samestat(os.fstat(self._rows), self._file):
            raise OSError(9, "the program has closed the trace's files")
        data = json.dumps(value, allow_nan=False).encode() + b"\n"
        if os.write(self._rows, data) != len(data):
            raise OSError(28, "No space left on device")


def read_parts(folder: Path) -> Trace:
    """The trace of a folder, also while processes write into it. Raises TraceError, also for parts
    that different machines wrote: their times and targets do not go together."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix == ROWS)
    except OSError as error:
        raise TraceError(f"cannot read the trace {folder}: {error.strerror}") from None
    kernels: list[TracedKernel] = []
    machine: dict[str, str] = {}
    for path in paths:
        kernels += _read_part(path, machine)
    return merged(kernels, machine, len(paths))


def _read_part(path: Path, machine: dict[str, str]) -> Iterator[TracedKernel]:
    try:
        lines = path.read_bytes().split(b"\n")
        counts = path.with_suffix(COUNTS).read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read the trace's part {path}: {error.strerror}") from None
    lines.pop()  # nothing, or a line that the process did not live to end
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        fields = parse_object(line, f"{path}:{number}", TraceError)
        if number == 1:
            check_version(fields, SCHEMA, VERSION, "a part of a trace")
            _same_machine(path, machine, {k: str(v) for k, v in fields.entries("machine").items()})
        elif "text" in fields.value:
            text = fields.text("text", most=16 << 20)
            texts[text_hash(text)] = text
        else:
            yield _counted(fields, texts, counts)


def _same_machine(path: Path, machine: dict[str, str], found: dict[str, str]) -> None:
    """Adds a part's machine to that of the others. What is empty (a process without LLVM does not
    know its processor's name) fits all."""
    for key, value in found.items():
        before = machine.get(key, "")
        if value and before and value != before:
            raise TraceError(
                f"{path.parent} holds parts of different machines: {path.name} has "
                f"{key} {value[:60]!r}, others have {before[:60]!r}; give each machine a folder "
                "of its own, and tune or bundle them one by one"
            )
        machine[key] = value or before


def _counted(fields: Fields, texts: dict[str, str], counts: bytes) -> TracedKernel:
    """A row with its counters."""
    at = fields.number("row", most=MOST_ROWS) * _COUNT.size
    calls, total, first = 0, 0.0, 0.0
    if at + _COUNT.size <= len(counts):
        calls, total, first = _COUNT.unpack_from(counts, at)
    fields.value |= {"count": calls, "seconds": total, "first_seconds": first}
    return read_row(fields, texts)
