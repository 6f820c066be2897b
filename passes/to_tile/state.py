"""What the parts of the lowering share: the builder, positions, scratch, and expression
building."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.dtypes import DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_cache import CachedStream
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import Axis, BufferType, StreamType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.kernel_info import KernelInfo, turned_source
from tilewright.passes.to_tile.schedule import Schedule
from tilewright.passes.to_tile.tables import tables_of


class Block(Protocol):
    """A product that rows share, a block of it in scratch (made.py)."""

    def point(self, at: dict[str, Value], layout: Layout, shift: int = 0) -> Value: ...


RowKey = tuple[str, Value]  # "value" or "offset" (of a source in memory), and whose
Leaf = Callable[[Value], Value | None]


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass
class LoweringState:
    """Shared state of one kernel's lowering."""

    info: KernelInfo
    schedule: Schedule
    buffers: dict[Value, Value]
    build: TileBuilder = field(default_factory=TileBuilder)
    grid_at: dict[str, Value] = field(default_factory=dict)  # positions of grid axes
    shares: bool = False  # whether items take parts of the inner axis that are joined afterwards
    part: Value | None = None  # which one this does
    first_row: Value | None = None
    row_total: Value | None = None
    packed: dict[Value, Value] = field(default_factory=dict)  # row operands of contractions
    row_vectors: dict[RowKey, Value] = field(default_factory=dict)  # a scalar per row, in scratch
    sums: dict[Value, Value] = field(default_factory=dict)  # state of a reduction, in scratch

    made_blocks: dict[Value, Block] = field(default_factory=dict)  # products made again
    shared: dict[Value, Any] = field(default_factory=dict)  # what rows share: InnerOperand

    tile_positions: int = 0  # positions of the register tiles being built
    tile_rows: int = 0  # their rows, from row_start of the work item's
    row_start: Value = field(init=False)
    tables: dict[Value, tuple[Value, Value]] = field(default_factory=dict)  # of an input

    def __post_init__(self) -> None:
        self.tile_positions = self.schedule.inner_tile
        self.tile_rows = self.schedule.rows
        self.row_start = self.build.index(0)
        params = self.info.graph.params
        for source, low, high in tables_of(self.info.graph):
            minima, maxima = self.buffers[params[low]], self.buffers[params[high]]
            self.tables[params[source]] = minima, maxima

    @contextmanager
    def row_window(self, start: Value, rows: int) -> Iterator[None]:
        """Register tiles of some of the rows only."""
        before = self.row_start, self.tile_rows
        self.row_start, self.tile_rows = start, rows
        yield
        self.row_start, self.tile_rows = before

    def for_rows_left(self, build: Callable[[], None]) -> None:
        """Builds the same for 1, 2 … vectors of rows: where products alone are formed of fewer rows
        than a work item's, the others need not be."""
        y, b = self.schedule, self.build
        vectors = y.rows // y.lanes if y.rows_on_lanes and self.info.splits else 1
        if vectors == 1:
            build()
            return
        assert self.first_row is not None and self.row_total is not None
        left = b.sub(self.row_total, self.first_row)
        for count in range(1, vectors):
            least, beyond = b.index((count - 1) * y.lanes), b.index(count * y.lanes + 1)
            window = self.row_window(b.index(0), count * y.lanes)
            with b.when_less(least, left), b.when_less(left, beyond), window:
                build()
        with b.when_less(b.index((vectors - 1) * y.lanes), left):
            build()

    @property
    def unit(self) -> int:
        """What the positions of a block without bounds are a multiple of."""
        y = self.schedule
        return math.lcm(y.inner_tile, y.lanes, y.align)

    def turned_source(self, value: Value) -> s.Source | None:
        """The input that a shared operand is, widened to f32, if neighbours in memory are
        positions."""
        return turned_source(self.info, value, self._unit)

    def _unit(self, op: s.Source) -> int:
        kind = self.buffers[op.tensor].type
        assert isinstance(kind, BufferType)
        return kind.unit

    @property
    def tile_layout(self) -> Layout:
        """Layout of a register tile [inner positions, rows]."""
        y = self.schedule
        if y.rows_on_lanes:
            return (
                Layout(2).local(self.tile_positions, self.tile_rows // y.lanes).spatial(1, y.lanes)
            )
        if y.positions_on_lanes:
            return Layout(2).local(self.tile_positions // y.lanes, y.rows).spatial(y.lanes, 1)
        return Layout(2).spatial(self.tile_positions, y.rows)

    def kept_shape(self) -> list[int]:
        """Scratch for a number of every position and row of a block."""
        y = self.schedule
        return [y.rows, y.inner_block] if y.kept_by_row else [y.inner_block, y.rows]

    def kept_at(self, position: Value, row: Value) -> list[Value]:
        """Where it starts at a position and a row."""
        return [row, position] if self.schedule.kept_by_row else [position, row]

    def kept_dims(self, position: int, row: int) -> list[int]:
        """Which tile dimensions run along it."""
        return [row, position] if self.schedule.kept_by_row else [position, row]

    @property
    def row_layout(self) -> Layout:
        """Layout of one scalar per row, [1, rows], that goes with ``tile_layout``."""
        return self.tile_layout.collapse(0)

    def lane_layout(self, vectors: int = 1) -> Layout:
        """[1, vectors * lanes] along an element's axis."""
        return Layout(2).local(1, vectors).spatial(1, self.schedule.lanes)

    def dtype(self, value: Value) -> DType:
        assert isinstance(value.type, StreamType)
        return value.type.dtype

    def padded(self, axis: Axis) -> int:
        """An element axis's length, rounded up to whole vectors."""
        known = axis.size.constant
        assert known is not None
        return round_up(known, self.schedule.lanes)

    def may_end_within(self, axis: Axis, width: int) -> bool:
        """Whether an element may end inside a step of so many numbers."""
        known = axis.size.constant
        return width > 1 if known is None else known % width > 0

    def expression(self, value: Value, leaf: Leaf, memo: dict[Value, Value]) -> Value:
        """Builds ``value`` from leaves: ``leaf`` gives a tile for a value or None to go on
        below."""
        if value not in memo:
            found = leaf(value)
            memo[value] = found if found is not None else self._pointwise(value, leaf, memo)
        return memo[value]

    def _pointwise(self, value: Value, leaf: Leaf, memo: dict[Value, Value]) -> Value:
        op = self.info.made.get(value)
        if isinstance(op, m.Const):
            return self.build.number(op.value, self.dtype(value))
        if isinstance(op, m.SizeValue):
            return self.build.number_of(self.build.size(op.size), self.dtype(value))
        if isinstance(op, s.Repeat):
            return self.expression(op.x, leaf, memo)
        if op is None or "pointwise" not in op.traits:
            name = op.name if op else "an input"
            raise UnsupportedError(f"{name} cannot be computed here", op.loc if op else None)
        operands = [self.expression(v, leaf, memo) for v in op.operands]
        return self.build(type(op), *operands, hint=value.hint, **op.attrs)

    def combine(self, kind: str, a: Value, c: Value) -> Value:
        """Two partial results of a reduction as one."""
        cls = {"sum": m.Add, "max": m.Larger, "min": m.Smaller}[kind]
        return self.build(cls, a, c, hint=kind)

    def positions(self, at: Value, dtype: DType) -> Value:
        """[positions, 1]: those of the register tiles being built, from ``at``."""
        layout = self.tile_layout.collapse(1)
        return self.build.positions_along(0, layout, at, dtype, "position")

    def source_index(
        self, op: s.Source | s.Sink | CachedStream, at: dict[str, Value]
    ) -> tuple[list[Value], list[str]]:
        """Start index per dimension from positions of axes (missing ones start at 0), and the axis
        that runs innermost along each dimension."""
        sizes = self._axis_sizes(op)
        indices, runs = [], []
        for dim in op.dims:
            index: Value | None = None
            for name in dim:
                here = at.get(name)
                if index is not None:
                    index = self.build.mul(index, self.build.size(sizes[name]))
                    index = self.build.add(index, here) if here is not None else index
                else:
                    index = here if here is not None else self.build.index(0)
            indices.append(index if index is not None else self.build.index(0))
            runs.append(dim[-1] if dim else "")
        return indices, runs

    def _axis_sizes(self, op: s.Source | s.Sink | CachedStream) -> dict[str, Size]:
        type_ = op.x.type if isinstance(op, s.Sink) else op.type
        assert isinstance(type_, StreamType)
        return {a.name: a.size for a in type_.axes}

    def limit(
        self,
        op: s.Source | s.Sink,
        indices: list[Value],
        at: dict[str, Value],
        name: str,
        end: Value,
    ) -> Value:
        """The index at which positions on axis ``name`` reach ``end``: further on where the axis is
        the innermost part of a merged dimension. Raises UnsupportedError if it is another part."""
        dim = next(i for i, names in enumerate(op.dims) if name in names)
        if op.dims[dim] == (name,):
            return end
        if op.dims[dim][-1] != name:
            raise UnsupportedError(f"axis {name!r} is an outer part of a dimension", op.loc)
        return self.build.add(self.build.sub(indices[dim], at[name]), end)

    def split_position(self, at: Value, axes: tuple[Axis, ...]) -> dict[str, Value]:
        """The positions on ``axes`` of a flat position (last axis fastest)."""
        out: dict[str, Value] = {}
        for number, axis in enumerate(axes):
            inner = product(a.size for a in axes[number + 1 :])
            here = at
            if inner != Size.of(1):
                here = self.build.div(here, self.build.size(inner))
            if number:
                here = self.build.mod(here, self.build.size(axis.size))
            out[axis.name] = here
        return out
