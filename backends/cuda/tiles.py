"""What values of a program of threads are in C++: scalars, arrays of registers, memories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewright.backends.cuda.pointwise import HALVES, c_type, scalar_type
from tilewright.backends.cuda.text import CText, added, atom, times
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.layout import Layout
from tilewright.ir.types import SWIZZLED_BYTES, RegisterType, SharedType


@dataclass(frozen=True)
class Buffer:
    """Memory of the caller: its pointer, and a stride for every dimension (a name or "1").
    ``lines``: it starts, and has strides, at multiples of 16 bytes."""

    number: int
    pointer: str
    dtype: DType
    strides: tuple[str, ...]
    unit: int
    lines: bool


@dataclass(frozen=True)
class Shared:
    """Shared memory [slots, rows, columns]: its first byte as ``name``."""

    name: str
    type: SharedType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def row_bytes(self) -> int:
        return self.type.shape[-1] * self.dtype.bits // 8

    def swizzled(self, row: str) -> str:
        """What the pieces of a row are XORed with."""
        if not self.type.swizzle:
            return "0"
        per = self.type.rows_per_line
        line = atom(row) if per == 1 else f"{atom(row)} / {per}"
        return f"{line} % {self.type.swizzle}"

    def start(self, slot: str) -> str:
        """The first byte of a slot."""
        rows = self.type.shape[1] * self.row_bytes
        return added([self.name, times(slot, str(rows))])

    def at(self, slot: str, row: str, column: str) -> str:
        """The address of an element whose column begins a piece of 16 bytes."""
        width = SWIZZLED_BYTES * 8 // self.dtype.bits
        piece, swizzled = f"{atom(column)} / {width}", self.swizzled(row)
        piece = piece if swizzled == "0" else f"({piece} ^ {swizzled})"
        row_at, piece_at = times(row, str(self.row_bytes)), times(piece, str(SWIZZLED_BYTES))
        return added([self.start(slot), row_at, piece_at])


@dataclass(frozen=True)
class Tile:
    """A register tile: a scalar, or an array of a thread's registers; 16-bit floats lie two in a
    word there, and are f32 as scalars."""

    name: str
    dtype: DType
    layout: Layout
    scalar: bool


@dataclass(frozen=True)
class Lazy:
    """A load from shared memory that is written where it is used."""

    op: t.Load


class Writer:
    """The state of a program's writer, and what all of its parts use."""

    graph: Graph
    text: CText
    wide: set[int]  # buffers whose lines are made use of
    values: dict[Value, Any]
    made: dict[Value, Op]
    users: dict[Value, list[Op]]
    sizes: dict[str, str]
    counters: dict[Value, t.For]
    head: list[str]
    named: dict[str, str]
    anew: dict[str, str] | None  # in a loop: its own names for what depends on the thread only

    def local(self, name: str) -> str:
        """The name of a number that depends on the thread only where the writer is: in loops of
        programs that are short of registers it is a new one, so that what is made of it is computed
        in every turn instead of being kept."""
        if self.anew is None or not name.isidentifier() or name not in self.named.values():
            return name
        if name not in self.anew:
            self.anew[name] = self.text.name(f"{name}_here")
        return self.anew[name]

    def index(self, value: Value) -> str:
        """A run-time integer as text."""
        return str(self.values[value])

    def bind(self, kind: str, hint: str, text: str) -> str:
        """A new variable of a C++ type."""
        name = self.text.name(hint)
        self.text.line(f"{kind} {name} = {text};")
        return name

    def tile(self, value: Value) -> Tile:
        """A register tile, read from shared memory if that has not been done."""
        held = self.values[value]
        if isinstance(held, Lazy):
            self.read_shared(held.op)
            held = self.values[value]
        assert isinstance(held, Tile)
        return held

    def before_loop(self, region: Region) -> None:
        """Writes what all loops need, not just the one that a region is the body of."""
        raise NotImplementedError

    def read_shared(self, op: t.Load) -> None:
        """Writes a load from shared memory."""
        raise NotImplementedError

    def owner(self, layout: Layout) -> str:
        """Which threads store a tile."""
        raise NotImplementedError

    def write_shared(self, op: t.Store) -> None:
        """Writes a store to shared memory."""
        raise NotImplementedError

    def declare(self, value: Value) -> Tile:
        """A new array of registers for a value (or a scalar to be set once)."""
        type_ = value.type
        assert isinstance(type_, RegisterType)
        scalar = type_.layout.lanes == 1 and type_.layout.registers == 1
        made = Tile(self.text.name(value.hint), type_.dtype, type_.layout, scalar)
        self.values[value] = made
        if not scalar:
            self.text.line(f"{self.declaration(made)};")
        return made

    def declaration(self, tile: Tile) -> str:
        """``float s[32]``; words for floats of 16 bits."""
        count = tile.layout.registers
        if tile.dtype in HALVES:
            return f"uint32_t {tile.name}[{-(-count // 2)}]"
        return f"{c_type(tile.dtype)} {tile.name}[{count}]"

    def element(self, tile: Tile, register: str) -> str:
        """An element as a scalar (16-bit floats as f32)."""
        if tile.scalar:
            return tile.name
        if tile.dtype not in HALVES:
            return f"{tile.name}[{register}]"
        kind = c_type(tile.dtype)
        word, half = half_place(register)
        return f"tw::half_of<{kind}>({tile.name}[{word}], {half})"

    def assign(self, out: Tile, x: Tile) -> None:
        """Copies a tile's registers."""
        if x.scalar:
            self.fill(out, lambda register: x.name)
            return
        words = out.layout.registers
        words = -(-words // 2) if out.dtype in HALVES else words
        with self.text.each("i", words) as i:
            self.text.line(f"{out.name}[{i}] = {x.name}[{i}];")

    def fill(self, tile: Tile, element: Callable[[str], str]) -> None:
        """Sets every register of a tile; ``element`` gives the scalar of a register's number."""
        count = tile.layout.registers
        if tile.scalar:
            value = element("0")
            if tile.dtype in HALVES:
                value = f"tw::to_float(tw::to_{tile.dtype}({value}))"
            self.text.line(f"const {scalar_type(tile.dtype)} {tile.name} = {value};")
        elif tile.dtype in HALVES:
            with self.text.each("w", -(-count // 2)) as w:
                low = element(times(w, "2"))
                high = element(added([times(w, "2"), "1"])) if count > 1 else "0.0f"
                self.text.line(f"{tile.name}[{w}] = tw::pack_{tile.dtype}({low}, {high});")
        else:
            with self.text.each("i", count) as i:
                self.text.line(f"{tile.name}[{i}] = {element(i)};")


def half_place(register: str) -> tuple[str, str]:
    """In which word a register's element lies, and in which half."""
    if register.isdigit():
        return str(int(register) // 2), str(int(register) % 2)
    if register.endswith(" * 2"):
        return register.removesuffix(" * 2"), "0"
    if register.endswith(" * 2 + 1"):
        return register.removesuffix(" * 2 + 1"), "1"
    return f"{atom(register)} / 2", f"{atom(register)} % 2"
