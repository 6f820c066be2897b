"""Scales and zeros: one for every row of weights and group of codes.

Where groups begin at strips and divide a turn, or are some turns long, a *run* of strips shares
one column of numbers. Else every strip asks for its group; and where groups do not begin at strips,
every code does.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I64, DType
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import StreamDequantize
from tilewright.ir.packing import STRIP
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.lowbit.tiles import as_f32
from tilewright.passes.to_tile.lowbit.weights import Workplace
from tilewright.passes.to_tile.whole_blocks.lowbit.decode import LANES
from tilewright.passes.to_tile.whole_blocks.lowbit.words import Block


@dataclass(frozen=True)
class Beside:
    """A group's scale and zero in f32 (no zero: None), for rows or for every code of a strip."""

    scale: Value
    zero: Value | None


@dataclass(frozen=True)
class GroupNumbers:
    """Scales and zeros of ``height`` rows of one weight of ``length`` codes a row; a turn has
    ``strips`` strips. Codes come divided by ``unit``."""

    work: Workplace
    weights: StreamDequantize
    length: int
    strips: int
    height: int
    unit: float = 1.0

    @property
    def group(self) -> int:
        return max(1, min(self.weights.layout.group, self.length))

    @property
    def single(self) -> bool:
        """Whether a row is one group."""
        return self.group >= self.length

    @property
    def ragged(self) -> bool:
        """Whether groups begin within strips."""
        return not self.single and self.group % STRIP != 0

    @property
    def run(self) -> int:
        """Strips that share a group; 0 if each asks for its own."""
        turn = STRIP * self.strips
        if self.single or self.group % turn == 0:
            return self.strips
        return self.group // STRIP if self.group % STRIP == 0 == turn % self.group else 0

    @property
    def known(self) -> bool:
        """Whether the numbers of a turn can be read before it begins."""
        return self.run > 0 and not self.single

    def of_turn(self, block: Block, turn: Value) -> list[Beside]:
        """Those of a turn's runs."""
        b = self.work.build
        turn_codes = STRIP * self.strips
        if self.group >= turn_codes:
            return [self.at(block, b.div(turn, self.group // turn_codes))]
        count = turn_codes // self.group
        first = b.mul(turn, count)
        last = self.weights.layout.groups(self.length) - 1
        return [self.at(block, b.minimum(b.add(first, i), last)) for i in range(count)]

    def at(self, block: Block, group: Value) -> Beside:
        """Columns [rows, 1] of a group."""
        b, column = self.work.build, Layout(2).local(self.height, 1)

        def read(memory: Value) -> Value:
            at = [block.number, block.lanes(b, group)]
            return b.load(memory, at, (-1, 0), column, hint=memory.hint)

        return self._beside(read)

    def strip(self, block: Block, first: Value) -> Beside:
        """Those of the strip whose first code is number ``first``: columns, or ragged ones for
        every code."""
        b = self.work.build
        last = self.weights.layout.groups(self.length) - 1
        if not self.ragged:
            return self.at(block, b.minimum(b.div(first, self.group), last))
        layout = Layout(2).local(self.height, STRIP)
        codes = b.positions_along(1, layout.collapse(0), first, I64, "code")
        groups = b(m.Min, b(m.Div, codes, b.number(self.group, I64)), b.number(last, I64))
        rows = b(t.Coordinate, dim=0, layout=layout.collapse(1))
        offsets = b(m.Add, b(m.Mul, groups, b.number(LANES, I64)), rows, hint="numbers")

        def read(memory: Value) -> Value:
            start = b.mul(block.number, b(t.StrideOf, memory, dim=0, hint="stride"))
            start = start if block.lane is None else b.add(start, block.lane)
            return b(t.Gather, memory, start, offsets, hint=memory.hint)

        return self._beside(read)

    def _beside(self, read: object) -> Beside:
        assert callable(read)
        w = self.weights
        scale = self._wide(read(self.work.buffers[w.scales]), w.scales, w.scale)
        scale = self._times(scale, self.unit)
        if w.extra != "zeros":
            return Beside(scale, None)
        zero = self._wide(read(self.work.buffers[w.more[0]]), w.more[0], F32)
        return Beside(scale, self._times(zero, 1 / self.unit))

    def _times(self, x: Value, factor: float) -> Value:
        b = self.work.build
        return x if factor == 1 else b(m.Mul, x, b.number(factor, F32), hint=x.hint)

    def _wide(self, x: Value, tensor: Value, encoded: DType) -> Value:
        memory = self.work.buffers[tensor].type
        assert isinstance(memory, BufferType)
        return as_f32(self.work.build, x, memory.dtype, encoded)
