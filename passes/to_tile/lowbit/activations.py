"""Activations as bytes: each row and group divided by its largest magnitude, rounded to -127…127.

Made once for all products that read them, since a group's scale is not known before its last
element: a border between kernels.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Region, Value
from tilewright.ir.dtypes import F32, I8, I32, DType
from tilewright.ir.layout import Layout
from tilewright.ir.packing import QUAD
from tilewright.ir.sizes import Size
from tilewright.ir.target import Target
from tilewright.ir.types import BufferType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.to_tile.byte_steps import byte_steps, largest_across_lanes
from tilewright.passes.to_tile.emitter import TileBuilder

SMALLEST = 1e-36  # below it 127 / largest leaves the range of f32: then all codes are 0


def quantise_rows(length: int, group: int, dtype: DType, target: Target) -> Graph:
    """The tile program: x [M, length] of ``dtype`` -> codes i8 [M, groups * padded group], scales
    f32 [M, groups] and sums of codes i32 [M, groups]. Groups are padded to whole quads with 0."""
    groups, padded = -(-length // group), -(-group // QUAD) * QUAD
    rows = Size.of("M")
    x = Value(BufferType((rows, Size.of(length)), dtype, 1), "x")
    codes = Value(BufferType((rows, Size.of(groups * padded)), I8, 1), "codes")
    scales = Value(BufferType((rows, Size.of(groups)), F32, 1), "scales")
    sums = Value(BufferType((rows, Size.of(groups)), I32, 1), "sums")
    writer = _Row(x, codes, scales, sums, target.lanes)
    b = writer.b
    row = b(t.BlockId, dim=0, hint="row")
    if groups:
        with b.loop(b.index(0), b.index(groups), 1, hint="group") as loop:
            writer.group(row, loop.counter, length, group, padded)
    body = Region((x, codes, scales, sums), tuple(b.top.ops))
    attrs = {"grid": ((rows, 1),), "outputs": 3, "target": target.name}
    return canonicalise_graph(Graph("tile", "quantise_rows", ("M",), body, attrs))


class _Row:
    """Writes what happens to one row."""

    def __init__(self, x: Value, codes: Value, scales: Value, sums: Value, lanes: int) -> None:
        self.b = TileBuilder()
        self.x, self.codes, self.scales, self.sums = x, codes, scales, sums
        self.layout = Layout(2).spatial(1, lanes)
        self.lanes = lanes

    def group(self, row: Value, group: Value, length: int, size: int, padded: int) -> None:
        b = self.b
        start = b.mul(group, size)
        stop = b.minimum(b.add(start, size), length)
        largest = self._largest(row, start, stop, size)
        scale, inverse = byte_steps(b, largest, SMALLEST)
        at = b.mul(group, padded)
        end = b.add(at, padded)
        total = b.filled(0, I32, self.layout)
        with b.loop(b.index(0), b.index(padded), self.lanes, [total], hint="at") as loop:
            here = b.add(at, loop.counter)
            values = self._load(row, b.add(start, loop.counter), stop)
            scaled = b(m.Round, b(m.Mul, values, inverse), hint="scaled")
            code = b(m.Cast, scaled, dtype=I32, hint="code")
            loop.next = (b(m.Add, loop.carried[0], code, hint="sum"),)
            byte = b(m.Cast, code, dtype=I8, hint="byte")
            b.store(byte, self.codes, [row, here], (0, 1), [(1, end)])
        summed = b(t.Reduce, loop.results[0], kind="sum", dim=1, hint="sum")
        b.store(summed, self.sums, [row, group], (0, 1))
        b.store(scale, self.scales, [row, group], (0, 1))

    def _load(self, row: Value, at: Value, stop: Value) -> Value:
        b = self.b
        x = b.load(self.x, [row, at], (0, 1), self.layout, [(1, "zero", stop)], hint="x")
        return b(m.Cast, x, dtype=F32, hint="x")

    def _largest(self, row: Value, start: Value, stop: Value, size: int) -> Value:
        """The largest magnitude, [1, 1]; NaN if there is one."""
        b = self.b
        first = b.filled(0.0, F32, self.layout)
        with b.loop(b.index(0), b.index(size), self.lanes, [first], hint="at") as loop:
            values = self._load(row, b.add(start, loop.counter), stop)
            size_ = b(m.Abs, values, hint="size")
            loop.next = (b(m.Max, loop.carried[0], size_, hint="largest"),)
        return largest_across_lanes(b, loop.results[0])
