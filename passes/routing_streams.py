"""Routing operations as operations on streams.

Nothing here decides what has to wait for what: that follows from the types of the results
(``channels/nodes.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.ir import ops_routing as r
from tilewright.ir import ops_routing_stream as rs
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Builder, Op, Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.axes import AxisMap, Dim
from tilewright.passes.loop_order import LoopOrder


class RoutingStreams:
    """Builds the stream operations for one graph. ``repeat`` gives a value to every step of a
    loop."""

    def __init__(
        self,
        axes: AxisMap,
        order: LoopOrder,
        build: Builder,
        repeat: Callable[[Value, Axis], Value],
    ) -> None:
        self.axes, self.order, self.build, self.repeat = axes, order, build, repeat

    def convert(self, op: Op, values: list[Value], leveled: list[Value]) -> tuple[Value, ...]:
        """The results of an operation on streams, which are ``leveled`` to the same loops."""
        if isinstance(op, r.SegmentRank):
            return self.segment_rank(op, values)
        return _RULES[type(op)](self, op, leveled)

    def top_k(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        names = self._along(op, 0, -1)
        kept = self._axis(op, self.axes.dims[op.results[0]][-1], Size.of(op.k), "k")
        attrs = {key: op.attrs[key] for key in ("largest", "ties", "ordered")}
        hints = [v.hint for v in op.results]
        made = rs.StreamTopK(
            given[0], axes=names, kept=kept, loc=op.loc, hints=hints, **attrs
        )  # fmt: skip
        return tuple(self._single(x, kept) for x in self.build.add(made).results)

    def take_along(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        names = self._along(op, 0, op.axis)
        return (self.build(rs.StreamTakeAlong, *given, axes=names, hint=op.result.hint),)

    def scatter(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        dims = self.axes.dims[op.result]
        loops = max((_stream(v).loops for v in given), key=len)
        flat = [x for d in self.axes.resolved(dims) for x in d]
        element = tuple(self.axes.axis(x) for x in flat if x in self.order.element)
        dtype = _stream(given[0]).dtype
        attrs = {
            "axes": self._names(dims[op.axis]),
            "given": self._names(self.axes.views[op, 1].dims[op.axis]),
            "kind": op.kind,
            "type": StreamType(loops, element, dtype),
        }
        return (self.build(rs.StreamScatter, *given, hint=op.result.hint, **attrs),)

    def segment_count(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        self._check_walk(op, given[0])
        segments = self._axis(op, self.axes.dims[op.result][0], op.segments, "segment")
        axis = _stream(given[0]).loops[-1].name
        found = self.build(
            rs.StreamSegmentCount, given[0], axis=axis, segments=segments, hint=op.result.hint
        )
        return (self._single(found, segments),)

    def prefix_sum(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        names = self._along(op, 0, op.axis)
        attrs = {"axes": names, "exclusive": op.exclusive}
        return (self.build(rs.StreamPrefixSum, given[0], hint=op.result.hint, **attrs),)

    def segment_rank(self, op: Any, given: list[Value]) -> tuple[Value, ...]:
        ids, offsets = given
        self._check_walk(op, ids)
        for axis in _stream(ids).loops[len(_stream(offsets).loops) :]:
            offsets = self.repeat(offsets, axis)
        loop = _stream(ids).loops[-1].name
        return (self.build(rs.StreamSegmentRank, ids, offsets, axis=loop, hint=op.result.hint),)

    def _names(self, dim: Dim) -> tuple[str, ...]:
        return tuple(self.axes.name(x) for x in self.axes.resolve(dim))

    def _along(self, op: Op, at: int, dim: int) -> tuple[str, ...]:
        names = self._names(self.axes.views[op, at].dims[dim])
        if not names:
            raise UnsupportedError(f"{op.name} along a dimension of one element", op.loc)
        return names

    def _axis(self, op: Op, dim: Dim, size: Size, name: str) -> Axis:
        """The axis of a dimension; one of its own where that has one place."""
        if not dim:
            return Axis(f"{name}_one", size)
        axes = self.axes.resolve(dim)
        if len(axes) > 1:
            raise UnsupportedError(f"a {name} that is taken apart into several dimensions", op.loc)
        return self.axes.axis(axes[0])

    def _single(self, value: Value, axis: Axis) -> Value:
        """The number itself where an axis has one place: dimensions of one element have no axis."""
        if axis.size != Size.of(1):
            return value
        return self.build(s.Fold, value, kind="max", axis=axis.name, hint=value.hint)

    def _check_walk(self, op: Op, ids: Value) -> None:
        """Ids come in row-major order: the innermost loop, then the places of the element."""
        flat = [x for d in self.axes.resolved(self.axes.views[op, 0].dims) for x in d]
        type_ = _stream(ids)
        order = [a.name for a in (*type_.loops[-1:], *type_.element)]
        if [self.axes.name(x) for x in flat] != order or len(type_.loops) != 1:
            raise UnsupportedError(
                f"{op.name} over other than one loop and what lies inside its elements", op.loc
            )


_RULES: dict[type[Op], Callable[[RoutingStreams, Any, list[Value]], tuple[Value, ...]]] = {
    r.TopK: RoutingStreams.top_k,
    r.TakeAlong: RoutingStreams.take_along,
    r.Scatter: RoutingStreams.scatter,
    r.SegmentCount: RoutingStreams.segment_count,
    r.PrefixSum: RoutingStreams.prefix_sum,
}


def _stream(value: Value) -> StreamType:
    assert isinstance(value.type, StreamType)
    return value.type
