"""Positions and tiles in turn, as Triton knows most about them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tilewright.backends.numba.text import PythonText
from tilewright.backends.triton.pointwise import dtype_name
from tilewright.backends.triton.words import atom, is_literal
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.matrix_units import GROUP_UNIT, UNITS
from tilewright.ir.types import RegisterType

LEAST = UNITS[GROUP_UNIT].k  # rows of a right side that matrix units take
_FLOAT_BITS, _FLOAT = 0x4B000000, float(1 << 23)


class BlockOps:
    """What of a program's writer concerns positions and whole tiles; ``emit.py`` has the rest."""

    values: dict[Value, Any]
    made: dict[Value, Op]
    text: PythonText
    graph: Graph
    codes: dict[Value, list[str]]  # the tiles that unpacked ones consist of

    def _pointwise(self, op: Op) -> str:
        raise NotImplementedError

    def _math_div(self, op: Any) -> str:
        return (
            f"{atom(self.values[op.lhs])} // {self.values[op.rhs]}"
            if self._counts(op)
            else self._pointwise(op)
        )

    def _math_mod(self, op: Any) -> str:
        return (
            f"{atom(self.values[op.lhs])} % {self.values[op.rhs]}"
            if self._counts(op)
            else self._pointwise(op)
        )

    def _counts(self, op: Any) -> bool:
        """True for a position in a tile by a number: never negative, and Triton then sees which
        neighbours lie side by side in memory."""
        below = self.made.get(op.lhs)
        while isinstance(below, m.Cast):
            below = self.made.get(below.x)
        by = self.values[op.rhs]
        return isinstance(below, t.Coordinate) and is_literal(by) and not str(by).startswith("-")

    def _tile_unpack(self, op: t.Unpack) -> str:
        parts, type_ = self._codes(op), op.result.type
        assert isinstance(type_, RegisterType)
        self.codes[op.result] = parts
        text = _joined(parts)
        if len(parts) > 1:
            bits = len(parts).bit_length() - 1
            if op.dim == 0:
                order = ", ".join(map(str, (0, *range(2, 2 + bits), 1)))
                text = f"tl.permute({text}, ({order}))"
            text = f"tl.reshape({text}, {type_.shape})"
        return text if op.dtype == F32 else f"{text}.to({dtype_name(op.dtype)})"

    def _codes(self, op: t.Unpack) -> list[str]:
        """The names of tiles with the first code of every chunk, the second, … in f32: the bits of
        a small integer below those of 2^23 are one that is larger by that. (To convert an integer
        takes several times as long.)"""
        words, names = [atom(self.values[v]) for v in op.words], []
        for number in range(op.form.chunk):
            bits = []
            for x in op.form.pieces(number):
                down = x.at - x.low
                moved = f" >> {down}" if down > 0 else f" << {-down}" if down < 0 else ""
                bits.append(f"({words[x.word]}{moved}) & {((1 << x.width) - 1) << x.low}")
            code = " | ".join(f"({text})" for text in (*bits, str(_FLOAT_BITS)))
            code = f"({code}).to(tl.float32, bitcast=True) - {_FLOAT}"
            names.append(self.text.bind("code", code))
        return names

    def _in_turns(self, op: t.Product) -> list[Any]:
        """The tiles whose rows a product's right side has in turn, if a product with each of them
        is what units take: so its operands come in their layout from the words in memory, by
        themselves, and need not be put together in shared memory first."""
        together = self._together(op)
        if together is None or not self._all_in_turns:
            return [self.values[op.b]]
        parts = self.codes[op.b]
        if together.dtype == F32:
            return list(parts)
        return [self.text.bind("code", f"{x}.to({dtype_name(together.dtype)})") for x in parts]

    def _together(self, op: t.Product) -> t.Unpack | None:
        """What unpacks the right side of a product."""
        made = self.made.get(op.b)
        return made if isinstance(made, t.Unpack) else None

    @cached_property
    def _all_in_turns(self) -> bool:
        """Whether all products of tiles in turn can be made so: with just some of them kernels were
        slower than with none (H100: 0.29 ms for 0.21; bench/results/h100/)."""
        products = [op for op in self.graph.body.walk() if isinstance(op, t.Product)]
        found = [op for op in map(self._together, products) if op is not None]
        return all(op.dim == 0 and _rows(op.words[0]) >= LEAST for op in found)

    def _planes(self, x: Value, count: int) -> list[str]:
        """Every ``count``-th column of a tile from the first, the second, … on."""
        type_ = x.type
        assert isinstance(type_, RegisterType)
        rows, columns = type_.shape
        bits = count.bit_length() - 1
        shape = rows, columns // count, *(2,) * bits
        planes = [f"tl.reshape({self.values[x]}, {shape})"]
        for _ in range(bits):  # the last dimension is the lowest bit of a plane's number
            split: list[tuple[str, str]] = []
            for plane in planes:
                low, high = self.text.name(x.hint), self.text.name(x.hint)
                self.text.line(f"{low}, {high} = tl.split({plane})")
                split.append((low, high))
            planes = [low for low, _ in split] + [high for _, high in split]
        return planes


def _rows(tile: Value) -> int:
    assert isinstance(tile.type, RegisterType)
    return tile.type.shape[0]


def _joined(parts: list[str]) -> str:
    """Tiles along new last dimensions of two each, the number of a tile their index."""
    if len(parts) == 1:
        return parts[0]
    return f"tl.join({_joined(parts[::2])}, {_joined(parts[1::2])})"
