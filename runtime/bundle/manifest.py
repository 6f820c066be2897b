"""What a bundle's ``manifest.json`` says, as data, and as the file's bytes.

Nothing here opens files, and nothing needs torch, a compiler or the parser of programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.ir.dtypes import TABLE, DType
from tilewright.ir.sizes import parse_size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType

SCHEMA, VERSION = "tilewright-bundle", 1
ABI = 1  # of the argument block (runtime/calls.py): a bundle's code is called by this one only
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class File:
    """A file of the bundle: its SHA-256 in hexadecimal, and its length in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Machine:
    """What code needs: operating system, kind of processor, instruction sets as LLVM names them."""

    system: str
    machine: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Buffer:
    """An input or output of code: its name, sizes, dtype, and the dimension of stride one or -1."""

    name: str
    dtype: str
    shape: tuple[str, ...]
    unit: int = -1

    @property
    def type(self) -> BufferType:
        """As the type that a call is checked against."""
        return BufferType(tuple(map(parse_size, self.shape)), self.element, self.unit)

    @property
    def element(self) -> DType:
        return TABLE[self.dtype]


@dataclass(frozen=True)
class Image:
    """Machine code for a GPU beside a code's facts: files with cubin and PTX, threads and dynamic
    shared memory (bytes) of a block, which strides (buffer, dimension) it takes, whether it moves
    16 bytes at once, and of which buffers: ``wide`` ones start and step at multiples of that."""

    cubin: str
    ptx: str
    threads: int
    shared_bytes: int
    strides: tuple[tuple[int, int], ...]
    vectors: bool  # all that 0.1 knows: it takes this for all buffers
    wide: tuple[int, ...]


@dataclass(frozen=True)
class Code:
    """A compiled kernel: the function ``symbol`` of the library (CPU), with what a call needs.

    ``form`` is a hash of the program, the row class ``rows`` and unit strides that it was made
    from, ``program`` of the program without the last two. ``choice``: fields of its schedule that
    tuning has found, which tell codes of one form apart.
    """

    symbol: str
    form: str
    kernel: str
    level: str
    program: str
    rows: int
    static: dict[str, int]
    choice: dict[str, Any]
    sizes: tuple[str, ...]
    grid: tuple[tuple[str, int], ...]
    scratch_bytes: int
    params: tuple[Buffer, ...]
    outputs: int
    image: Image | None = None

    def odd(self, strides: Sequence[Sequence[int]]) -> frozenset[int]:
        """On a GPU, buffers with strides (of every one, in elements) that are no multiples of 16
        bytes."""
        assert self.image is not None, "codes of a GPU have images"
        widths = [max(1, p.element.bits // 8) for p in self.params]
        return frozenset(b for b, d in self.image.strides if strides[b][d] * widths[b] % 16)


SizeClass = tuple[int, ...]


@dataclass(frozen=True)
class Sized:
    """The codes of one form, by size class: the powers of two at or above the lengths of some
    ``dimensions`` (input, dimension), of which there are none where one code serves all sizes."""

    form: str
    dimensions: tuple[tuple[int, int], ...]
    codes: tuple[tuple[SizeClass, str], ...]

    def pick(self, shapes: Sequence[tuple[int, ...]]) -> str:
        """The symbol of the code whose size class is nearest to a call's."""
        if len(self.codes) == 1:
            return self.codes[0][1]
        lengths = (shapes[at][dim] - 1 for at, dim in self.dimensions)
        wanted = tuple(max(0, length).bit_length() for length in lengths)

        def distance(item: tuple[SizeClass, str]) -> int:
            return sum(abs(a - b) for a, b in zip(item[0], wanted, strict=True))

        return min(self.codes, key=distance)[1]


@dataclass(frozen=True)
class Form:
    """Which form takes calls with these unit strides, static sizes and row class."""

    units: tuple[int, ...]
    static: tuple[int, ...]
    rows: int
    form: str


@dataclass(frozen=True)
class Family:
    """A kernel in all its forms, and how a call finds its own (runtime/family.py).

    ``tables``: positions of inputs whose extremes over ``table_stride`` elements are inputs, too.
    ``empty``: whether calls with nothing to sum along ``inner`` are the interpreter's.
    """

    name: str
    sizes: tuple[str, ...]
    params: tuple[Buffer, ...]
    given: int
    tables: tuple[int, ...]
    table_stride: int
    gathered: tuple[int, ...]
    static: tuple[str, ...]
    row_count: str
    inner: str
    classes: tuple[int, ...]
    empty: bool
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Step:
    """One kernel of a program: names of the values that it takes and gives."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    family: Family


@dataclass(frozen=True)
class Program:
    """A program that can be called by name. ``text``: its IR; ``sha256`` of that text."""

    name: str
    sha256: str
    text: str
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Manifest:
    """All of it. ``library``: the shared library's file, "" for GPUs. ``uncalled``: programs whose
    kernels are in here but that have no name to be called by, and why. ``made_by``: Tilewright's
    version and hash of sources, and the code generators', for people."""

    target: Target
    needs: Machine
    library: str
    files: dict[str, File]
    codes: tuple[Code, ...]
    sized: tuple[Sized, ...]
    programs: tuple[Program, ...]
    uncalled: dict[str, str]
    made_by: dict[str, str]

    def to_bytes(self) -> bytes:
        """The file: the same bytes for the same bundle. Its hash finds damage, not malice."""
        body = json.loads(json.dumps({"abi": ABI, **asdict(self)}))
        head = {"schema": SCHEMA, "version": VERSION, "sha256": digest_of(body), "bundle": body}
        return (json.dumps(head, indent=1, allow_nan=False) + "\n").encode()


def digest_of(body: object) -> str:
    """Of the values, whatever the spaces between them."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
