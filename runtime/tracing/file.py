"""Trace files: JSON of a documented, versioned schema (docs/bundles.md), read with every field
checked, written whole or not at all.

A trace may also be read from the folder that its processes wrote their parts into: nothing is lost
if whoever was to put them together is gone.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path

from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import TraceError
from tilewright.runtime.json_fields import IDENTIFIER, SHA256, Fields, check_version, parse_object
from tilewright.runtime.tracing.kernels import LEVELS, Trace, TracedInput, TracedKernel
from tilewright.runtime.whole_file import write_whole

SCHEMA, VERSION = "tilewright-trace", 1
_MOST_BYTES = 1 << 30
_MOST_RANK = 16
_LARGEST = 3.5e38  # of a dtype's values, which are f32
_MOST_ELEMENTS = 1 << 56


def read_trace(path: Path | str) -> Trace:
    """The trace in a file, or in a folder of parts. Raises TraceError."""
    place = Path(path)
    if place.is_dir():
        from tilewright.runtime.tracing.parts import read_parts

        return read_parts(place)
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TraceError(f"{place} is neither a file nor a folder")
        if status.st_size > _MOST_BYTES:
            raise TraceError(f"{place} is longer than 1 GiB: no trace is")
        data = place.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"cannot read the trace {place}: {reason}") from None
    top = parse_object(data, str(place), TraceError)
    check_version(top, SCHEMA, VERSION, "a trace")
    programs = {n: _program(top, n, t) for n, t in top.entries("programs").items()}
    kernels = [read_row(x, programs) for x in top.objects("kernels")]
    machine = {k: str(v)[:20_000] for k, v in top.entries("machine").items()}
    return merged(kernels, machine, top.number("processes"))


def write_trace(trace: Trace, path: Path, force: bool = False) -> None:
    """Writes a file that is there as a whole or not at all. TraceError if it exists (``force``
    replaces it) or cannot be written."""
    programs = {text_hash(k.program): k.program for k in trace.kernels}
    rows = [{**k.to_dict(), "program": text_hash(k.program)} for k in trace.kernels]
    value = {
        "schema": SCHEMA,
        "version": VERSION,
        "machine": trace.machine,
        "processes": trace.processes,
        "programs": programs,
        "kernels": rows,
    }
    data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    write_whole(path, data, TraceError, force)


def text_hash(text: str) -> str:
    """What a program's text is kept under."""
    return hashlib.sha256(text.encode()).hexdigest()


def merged(kernels: Iterable[TracedKernel], machine: dict[str, str], processes: int) -> Trace:
    """Rows of several processes put together, those that took longest first."""
    found: dict[tuple[object, ...], TracedKernel] = {}
    for kernel in kernels:
        if kernel.count:
            key = kernel.identity()
            found[key] = kernel.plus(found[key]) if key in found else kernel
    rows = sorted(found.values(), key=lambda k: (-k.seconds, k.name, k.program))
    return Trace(tuple(rows), machine, processes)


def _program(x: Fields, name: str, text: object) -> str:
    if not SHA256.fullmatch(name) or not isinstance(text, str) or text_hash(text) != name:
        raise x.refuse("programs", f"holds a text under {name[:64]!r} that has another SHA-256")
    return text


def read_row(x: Fields, programs: dict[str, str]) -> TracedKernel:
    """A row by its fields; ``programs`` are texts by hash."""
    digest = x.text("program", SHA256)
    if digest not in programs:
        raise x.refuse("program", f"is {digest[:12]} …, of which the file has no text")
    level = x.text("level", IDENTIFIER)
    if level not in LEVELS:
        raise x.refuse("level", f"is {level!r}; there are {', '.join(LEVELS)}")
    tables = {}
    for name in x.entries("tables"):
        values = x.inside("tables").items(name, 256)
        if not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in values):
            raise x.refuse("tables", f"holds {name[:40]!r}, whose values are no numbers")
        tables[name] = tuple(map(float, values))
    options: dict[str, int | str] = {}
    for name, value in x.entries("options").items():
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise x.refuse("options", f"holds {name[:40]!r}, which is neither number nor text")
        options[name] = value
    return TracedKernel(
        programs[digest],
        level,
        x.text("name", most=200),
        x.text("target", most=200),
        x.text("backend", IDENTIFIER),
        tuple(_input(i) for i in x.objects("inputs", 256)),
        x.counts("sizes"),
        options,
        tables,
        x.number("count"),
        x.decimal("seconds"),
        x.decimal("first_seconds"),
    )


def _input(x: Fields) -> TracedInput:
    dtype = x.text("dtype", IDENTIFIER)
    if dtype not in TABLE or not TABLE[dtype].addressable:
        raise x.refuse("dtype", f"is {dtype!r}, which is no dtype")
    shape, strides = x.numbers("shape", most=1 << 48), x.numbers("strides", most=1 << 48)
    if len(shape) != len(strides) or len(shape) > _MOST_RANK:
        raise x.refuse("strides", f"are {len(strides)} for {len(shape)} dimensions")
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
    if reach >= _MOST_ELEMENTS or math.prod(shape) >= _MOST_ELEMENTS:
        raise x.refuse("shape", f"is {shape}, larger than any memory")
    return TracedInput(x.text("name", most=200), dtype, shape, strides)
