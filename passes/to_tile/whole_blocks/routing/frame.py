"""Tiles of routing kernels: a dimension for tokens, then one for every axis of an element.

A tile has size one along what it does not change with. Sizes are padded to powers of two; what lies
past the end of an axis is masked where it would count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Graph, Value
from tilewright.ir.dtypes import BOOL, I32, I64, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.types import RegisterType, StreamType
from tilewright.passes.to_tile.emitter import TileBuilder
from tilewright.passes.to_tile.whole_blocks.schedule import power_of_two

PART = "part"  # the axis of counts that parts of the loop made by themselves


class TokenFrame:
    """Layouts, positions and masks of a kernel whose blocks have ``rows`` tokens."""

    def __init__(self, b: TileBuilder, axes: Mapping[str, int], token: str, rows: int) -> None:
        self.b, self.token, self.rows = b, token, rows
        self.names = ("", *axes)  # the token's has no place among the element's
        self.sizes = {"": rows, **axes}
        self.rank = len(self.names)
        self.first: Value | None = None  # token of the block
        self.end: Value | None = None  # one past the last token that counts

    def dim(self, axis: str) -> int:
        """The dimension of an element's axis, 0 of the token's."""
        return 0 if axis in ("", self.token) else self.names.index(axis)

    def layout(self, axes: Iterable[str]) -> Layout:
        """Of a tile along some axes."""
        dims = {self.dim(a) for a in axes}
        sizes = [self.padded(n) if d in dims else 1 for d, n in enumerate(self.names)]
        return Layout(self.rank).local(*sizes)

    def padded(self, axis: str) -> int:
        return power_of_two(self.sizes["" if axis == self.token else axis])

    # ---- tiles

    def number(self, value: float, dtype: DType) -> Value:
        return self.b.number(value, dtype, self.rank)

    def splat(self, x: Value, dtype: DType) -> Value:
        """A run-time integer."""
        wide = self.b.splat(x, self.rank)
        return wide if dtype == I64 else self.b(m.Cast, wide, dtype=dtype, hint=x.hint)

    def coordinate(self, axis: str, dtype: DType) -> Value:
        """Positions along an axis, of tokens from the block's first on."""
        b, dim = self.b, self.dim(axis)
        if self.padded(axis) == 1:
            return self.number(0, dtype)
        here = b(t.Coordinate, dim=dim, layout=self.layout([axis]), hint="here")
        return here if dtype == I64 else b(m.Cast, here, dtype=dtype, hint="here")

    def position(self, axis: str, dtype: DType) -> Value:
        """Positions along an axis: of tokens in the whole call."""
        here = self.coordinate(axis, dtype)
        if self.dim(axis):
            return here
        return self.b(m.Add, here, self.splat(self.block_first, dtype), hint="token")

    @property
    def block_first(self) -> Value:
        if self.first is None:
            raise UnsupportedError("a number of every token outside of the loop over tokens")
        return self.first

    def flat(self, axes: Sequence[str], dtype: DType) -> Value:
        """Positions in several axes of the element, the last fastest."""
        total = self.number(0, dtype)
        for axis in axes:
            total = self.b(m.Mul, total, self.number(self.sizes[axis], dtype))
            total = self.b(m.Add, total, self.coordinate(axis, dtype), hint="place")
        return total

    def count(self, axes: Sequence[str]) -> int:
        total = 1
        for axis in axes:
            total *= self.sizes[axis]
        return total

    def inside(self, axes: Iterable[str]) -> Value | None:
        """Where positions lie before the ends of axes; None if all do."""
        b, found = self.b, None
        for axis in axes:
            if self.dim(axis):
                if self.sizes[axis] == self.padded(axis):
                    continue
                end = self.number(self.sizes[axis], I32)
            else:
                assert self.end is not None
                end = self.splat(b.sub(self.end, self.block_first), I32)
            here = b(m.Compare, self.coordinate(axis, I32), end, relation="lt", hint="inside")
            found = here if found is None else b(m.And, found, here, hint="inside")
        return found

    def masked(self, x: Value, axes: Iterable[str], neutral: float) -> Value:
        """``x`` with ``neutral`` past the ends of axes."""
        inside = self.inside(axes)
        if inside is None:
            return x
        return self.b(m.Select, inside, x, self.number(neutral, dtype_of(x)), hint=x.hint)

    def widened(self, x: Value, axes: Iterable[str]) -> Value:
        """A tile repeated along axes in which it has size one."""
        type_, layout, b = x.type, self.layout(axes), self.b
        assert isinstance(type_, RegisterType)
        if type_.layout == layout:
            return x
        if type_.dtype == BOOL:
            return b(m.Or, x, b.filled(0, BOOL, layout), hint=x.hint)
        return b(m.Add, x, b.filled(0, type_.dtype, layout), hint=x.hint)

    def reduced(self, x: Value, axes: Iterable[str], kind: str) -> Value:
        """A reduction over axes; all that ``x`` has there counts."""
        for axis in axes:
            type_, dim = x.type, self.dim(axis)
            assert isinstance(type_, RegisterType)
            if type_.shape[dim] > 1:
                x = self.b(t.Reduce, x, kind=kind, dim=dim, hint=x.hint)
        return x


def dtype_of(x: Value) -> DType:
    dtype = getattr(x.type, "dtype", None)
    assert isinstance(dtype, DType)
    return dtype


def element_axes(graph: Graph, token: str, terms: set[str]) -> dict[str, int]:
    """The sizes of all axes inside elements, but for those that products are added up along.

    Raises UnsupportedError for an axis whose size is no number, or that has two.
    """
    found: dict[str, int] = {}
    for op in graph.body.ops:
        for value in op.results:
            for axis in value.type.element if isinstance(value.type, StreamType) else ():
                if axis.name in terms or axis.name == token:
                    continue
                size = axis.size.constant
                if size is None or found.setdefault(axis.name, size) != size:
                    raise UnsupportedError(f"axis {axis.name!r} of {axis.size} in a routing kernel")
    return found
