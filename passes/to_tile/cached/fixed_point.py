"""Rows of f32 as signed bytes for 8-bit dot products: x = step * (d0 + d1 / 254 + …).

Each row is divided by its largest magnitude, rounded to -127 … 127, and what that leaves out is
rounded again, 254 times finer. Two bytes hold a number to 2^-16 of the row's largest one; dot
products of bytes are exact, so that only this rounding counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I8, I32
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.byte_steps import byte_steps, largest_across_lanes
from tilewright.passes.to_tile.emitter import TileBuilder

DIGITS = 2
BASE = 254.0
NOTHING = 1e-30  # rows below it are zeros: 1 / x would overflow

Load = Callable[[Value], Value]


@dataclass(frozen=True)
class Stretch:
    """Numbers ``load(0)``, ``load(lanes)``, … below ``stop`` go to ``first``, …; ``zeros`` gives
    what their sum is weighed with (None: 1)."""

    load: Load
    stop: Value
    first: Value
    zeros: Load | None = None


class FixedPoint:
    """Rows as bytes in scratch [digit * rows + row, length]."""

    def __init__(self, b: TileBuilder, rows: int, lanes: int, length: int, hint: str) -> None:
        self.b, self.rows, self.lanes = b, rows, lanes
        padded = -(-length // 4) * 4
        self.memory = b.scratch([DIGITS * rows, padded + lanes], I8, f"{hint}_bytes")
        self.layout = Layout(2).local(rows, 1).spatial(1, lanes)
        self.step: Value | None = None  # [rows, 1]

    def fill(self, stretches: list[Stretch]) -> list[Value]:
        """Writes all stretches in steps of one size; the sum of each in such steps, [rows, 1]."""
        b = self.b
        largest = self._largest(stretches)
        self.step, inverse = byte_steps(b, largest, NOTHING)
        return [self._write(s, inverse) for s in stretches]

    def _largest(self, stretches: list[Stretch]) -> Value:
        """The largest magnitude of each row; NaN if there is one, or an infinity."""
        b = self.b
        found = b.filled(0.0, F32, self.layout)
        for s in stretches:
            with b.loop(b.index(0), s.stop, self.lanes, [found], hint="at") as loop:
                size = b(m.Abs, s.load(loop.counter), hint="size")
                loop.next = (b(m.Max, loop.carried[0], size, hint="largest"),)
            found = loop.results[0]
        return largest_across_lanes(b, found)

    def _write(self, s: Stretch, inverse: Value) -> Value:
        b = self.b
        start = b.filled(0.0, F32, self.layout)
        with b.loop(b.index(0), s.stop, self.lanes, [start], hint="at") as loop:
            left = b(m.Mul, s.load(loop.counter), inverse, hint="left")
            at, total = b.add(s.first, loop.counter), loop.carried[0]
            value: Value | None = None
            for digit in range(DIGITS):
                whole = b(m.Round, left, hint="digit")
                byte = b(m.Cast, whole, dtype=I8, hint="byte")
                b.store(byte, self.memory, [b.index(digit * self.rows), at], [0, 1])
                scale = b.number(BASE**-digit, F32)
                value = whole if value is None else b(m.Fma, whole, scale, value, hint="value")
                rest = b(m.Sub, left, whole, hint="left")
                left = b(m.Mul, rest, b.number(BASE, F32), hint="left")
            assert value is not None
            weight = s.zeros(loop.counter) if s.zeros is not None else None
            summed = b(m.Add, total, value) if weight is None else b(m.Fma, value, weight, total)
            loop.next = (summed,)
        return b(t.Reduce, loop.results[0], kind="sum", dim=1, hint="sum")

    def load(self, digit: int, at: Value) -> Value:
        """[rows, 1, 4]: four neighbouring bytes of each row, the same on all lanes."""
        layout = Layout(3).local(self.rows, 1, 1).replicate(self.lanes).local(1, 1, 4)
        where = [self.b.index(digit * self.rows), at]
        return self.b.load(self.memory, where, [0, 2], layout, hint="x")

    def joined(self, sums: list[Value]) -> Value:
        """Sums of products with each digit (i32) as one, in steps."""
        b = self.b
        total = b(m.Cast, sums[0], dtype=F32, hint="sum")
        for digit in range(1, DIGITS):
            finer = b(m.Cast, sums[digit], dtype=F32, hint="sum")
            total = b(m.Fma, finer, b.number(BASE**-digit, F32), total, hint="sum")
        return total

    def zero_sums(self, layout: Layout) -> list[Value]:
        return [self.b.filled(0, I32, layout) for _ in range(DIGITS)]
