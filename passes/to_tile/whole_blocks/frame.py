"""Tiles over two axes of a kernel: what runs along their dimensions, and how memory gives them.

A frame names an axis for both dimensions of a tile: rows and positions for scores, rows and an
element's axis for what a row brings, an element's axis and positions for what rows share. A value
in a frame has size one in a dimension along which it does not change.

Several axes may run along one dimension together, flat, the last one fastest (the heads of a group
and their queries, which share keys): the dimension's name is theirs, with spaces between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL, F32, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import RegisterType, StreamType, TensorType
from tilewright.passes.to_tile.state import LoweringState


@dataclass(frozen=True)
class Frame:
    """The axes along both dimensions of a tile ("": none) and how long the tile is there."""

    axes: tuple[str, str]
    sizes: tuple[int, int]

    @property
    def layout(self) -> Layout:
        return self.part(True, True)

    @property
    def names(self) -> frozenset[str]:
        """All axes, those that run together one by one."""
        return frozenset(name for dim in self.axes for name in dim.split(" ")) - {""}

    @property
    def together(self) -> frozenset[str]:
        """Axes that run along a dimension with others."""
        return frozenset(n for dim in self.axes if " " in dim for n in dim.split(" "))

    def has(self, dim: int, axes: Iterable[str]) -> bool:
        """True if some of the axes run along a dimension."""
        return not frozenset(self.axes[dim].split(" ")).isdisjoint(axes)

    def part(self, first: bool, second: bool) -> Layout:
        """The layout of a tile that runs along some of the dimensions."""
        return Layout(2).local(self.sizes[0] if first else 1, self.sizes[1] if second else 1)

    def along(self, axes: frozenset[str]) -> Layout:
        """The layout of a tile that runs along those of the axes that the frame has."""
        return self.part(self.has(0, axes), self.has(1, axes))


@dataclass(frozen=True)
class Place:
    """Where tiles are: the first position on every axis; the end in memory (``limits``) of axes
    that tiles may overlap; and the end of what counts, if that may come before (``ends``)."""

    at: Mapping[str, Value]
    limits: Mapping[str, Value] = field(default_factory=dict)
    ends: Mapping[str, Value] = field(default_factory=dict)


class FrameMemory:
    """Loads, stores and positions of tiles in frames."""

    def __init__(self, state: LoweringState, tiled: frozenset[str]) -> None:
        """``tiled``: axes of rows, positions and elements, which run along tiles."""
        self.state, self.build, self.tiled = state, state.build, tiled
        self.whole: frozenset[str] = frozenset()  # axes of elements as long as their tiles

    def position(self, axis: str, frame: Frame, place: Place, dtype: DType) -> Value:
        """The positions on an axis: along the frame, or one number."""
        if axis not in frame.names:
            self._require_scalar(axis)
            return self.build.number_of(place.at[axis], dtype)
        dim = 0 if frame.has(0, (axis,)) else 1
        layout, flat = frame.part(dim == 0, dim == 1), frame.axes[dim]
        if flat == axis:
            return self.build.positions_along(dim, layout, place.at[axis], dtype, f"{axis}_at")
        here = self.build.positions_along(dim, layout, place.at[flat], I32, "flat")
        here = self._one_of(here, axis, flat.split(" "))
        return here if dtype == I32 else self.build(m.Cast, here, dtype=dtype, hint=f"{axis}_at")

    def _one_of(self, flat: Value, axis: str, names: list[str]) -> Value:
        """The position on one of the axes that run together."""
        b, sizes = self.build, {a.name: a.size for a in self.state.info.rows}
        at = names.index(axis)
        inner = product(sizes[name] for name in names[at + 1 :])
        if inner != Size.of(1):
            flat = b(m.Div, flat, b.number_of(b.size(inner), I32), hint=axis)
        if at:
            flat = b(m.Mod, flat, b.number_of(b.size(sizes[axis]), I32), hint=axis)
        return flat

    def _require_scalar(self, axis: str) -> None:
        if axis in self.tiled:
            raise UnsupportedError(f"a value along {axis!r} where a tile does not run along it")

    def load(self, op: s.Source, frame: Frame, place: Place) -> Value:
        """A source in a frame; zero past the limits."""
        for axis in {a for dim in op.dims for a in dim} - frame.names:
            self._require_scalar(axis)
        if not self._direct(op, frame):
            return self._gathered(op, frame, place)
        indices, dims, bounds, layout = self._access(op, frame, place)
        buffer = self.state.buffers[op.tensor]
        kinds = [(d, "zero", end) for d, end in bounds]
        return self.build.load(buffer, indices, dims, layout, kinds, hint=op.result.hint)

    def store(self, op: s.Sink, value: Value, frame: Frame, place: Place) -> None:
        """Writes a result, widened to the whole frame."""
        for axis in {a for dim in op.dims for a in dim} - frame.names:
            self._require_scalar(axis)
        if not self._direct(op, frame):
            self._scatter(op, value, frame, place)
            return
        indices, dims, bounds, layout = self._access(op, frame, place)
        value = self.widened(value, layout)
        self.build.store(value, self.state.buffers[op.result], indices, dims, bounds)

    def widened(self, value: Value, layout: Layout) -> Value:
        """A tile repeated along dimensions in which it has size one."""
        type_ = value.type
        assert isinstance(type_, RegisterType)
        if type_.layout == layout:
            return value
        if type_.dtype == BOOL:
            return self.build(m.Or, value, self.build.filled(0, BOOL, layout), hint=value.hint)
        return self.build(m.Add, value, self.build.filled(0, type_.dtype, layout), hint=value.hint)

    def _direct(self, op: s.Source | s.Sink, frame: Frame) -> bool:
        """True if every axis of the frame is the last part of the dimension that it is in, and has
        a dimension of the frame to itself."""
        together, names = frame.together, frame.names
        alone = all(a not in together for dim in op.dims for a in dim)
        return alone and all(a not in names for dim in op.dims for a in dim[:-1])

    def _access(
        self, op: s.Source | s.Sink, frame: Frame, place: Place
    ) -> tuple[list[Value], list[int], list[tuple[int, Value]], Layout]:
        indices, runs = self.state.source_index(op, dict(place.at))
        dims = [frame.axes.index(run) if run and run in frame.axes else -1 for run in runs]
        bounds = []
        for dim, axis in enumerate(frame.axes):
            if axis in runs and axis in place.limits:
                end = self.state.limit(op, indices, dict(place.at), axis, place.limits[axis])
                bounds.append((dim, end))
        return indices, dims, bounds, frame.along(frozenset(runs) - {""})

    def _gathered(self, op: s.Source, frame: Frame, place: Place) -> Value:
        """A source one of whose dimensions has a tiled axis as an outer part, or rows of several
        axes; elements are zero past their limits."""
        at = self._positions(op, frame, place)
        x = self.gather(op, [(x, self.stays_inside(d)) for x, d in zip(at, op.dims, strict=True)])
        for axis in self.state.info.element(op.result):
            x = self.masked(x, axis.name, frame, place, 0.0)
        return x

    def _positions(self, op: s.Source | s.Sink, frame: Frame, place: Place) -> list[Value]:
        """Where a frame lies in memory: a tile of positions for every dimension."""
        at = []
        type_ = op.x.type if isinstance(op, s.Sink) else op.type
        assert isinstance(type_, StreamType)
        sizes = {a.name: a.size for a in type_.axes}
        for dim in op.dims:
            index: Value | None = None
            for axis in dim:
                here = self.position(axis, frame, place, I64)
                if index is not None:
                    size = self.build.number_of(self.build.size(sizes[axis]), I64)
                    here = self.build(m.Fma, index, size, here, hint="index")
                index = here
            at.append(index if index is not None else self.build.number(0, I64))
        return at

    def _scatter(self, op: s.Sink, value: Value, frame: Frame, place: Place) -> None:
        """Writes a result whose rows lie one by one in memory."""
        b, buffer = self.build, self.state.buffers[op.result]
        layout = frame.along(frozenset(a for dim in op.dims for a in dim))
        where = b.filled(1, BOOL, layout)
        for axis in frame.axes:
            inside = self.inside(axis, frame, place)
            where = where if inside is None else b(m.And, where, inside, hint="inside")
        offsets = b.filled(0, I64, layout)
        for dim, index in enumerate(self._positions(op, frame, place)):
            stride = b.splat(b(t.StrideOf, buffer, dim=dim, hint="stride"))
            offsets = b(m.Add, offsets, b(m.Mul, index, stride, hint="along"), hint="offsets")
        b.effect(t.Scatter, self.widened(value, layout), buffer, b.index(0), offsets, where)

    def stays_inside(self, axes: Sequence[str]) -> bool:
        """True if all of a tile's positions on these axes exist: on the grid, and along elements
        that take up whole tiles."""
        return all(a in self.whole or a in self.state.grid_at for a in axes)

    def gather(self, op: s.Source | s.Gather, at: Sequence[tuple[Value, bool]]) -> Value:
        """Memory at a tile of positions for each dimension, moved inside it unless they are known
        to lie there."""
        b, buffer = self.build, self.state.buffers[op.tensor]
        assert isinstance(op.tensor.type, TensorType)
        total: Value | None = None
        for dim, ((index, sure), size) in enumerate(zip(at, op.tensor.type.shape, strict=True)):
            narrow = getattr(index.type, "dtype", I64) != I64
            place = b(m.Cast, index, dtype=I64) if narrow else index
            if not sure:
                last = b.splat(b.sub(b.size(size), 1))
                place = b(m.Max, b(m.Min, place, last), b.number(0, I64), hint="inside")
            stride = b.splat(b(t.StrideOf, buffer, dim=dim, hint="stride"))
            term = b(m.Mul, place, stride, hint="along")
            total = term if total is None else b(m.Add, total, term, hint="offsets")
        total = b.number(0, I64) if total is None else total
        return b(t.Gather, buffer, b.index(0), total, hint=op.result.hint)

    def inside(self, axis: str, frame: Frame, place: Place) -> Value | None:
        """Where positions along an axis lie before its end; None if all do."""
        end = place.ends.get(axis, place.limits.get(axis))
        if end is None or axis not in frame.axes:
            return None
        b, dim = self.build, frame.axes.index(axis)
        left = b.number_of(b.sub(end, place.at[axis]), I32)
        here = b(t.Coordinate, dim=dim, layout=frame.part(dim == 0, dim == 1))
        here = b(m.Cast, here, dtype=I32, hint="here")
        return b(m.Compare, here, left, relation="lt", hint=f"{axis}_inside")

    def masked(self, x: Value, axis: str, frame: Frame, place: Place, neutral: float) -> Value:
        """``x`` with ``neutral`` past an axis's limit."""
        inside = self.inside(axis, frame, place)
        if inside is None:
            return x
        dtype = getattr(x.type, "dtype", F32)
        return self.build(m.Select, inside, x, self.build.number(neutral, dtype), hint=x.hint)
