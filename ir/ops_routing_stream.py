"""Routing on streams: folds that keep k numbers, folds with a counter per segment, look-ups.

What a node keeps between its firings never grows with the length of a loop: the k best so far, one
counter for every segment, one sum. How long an operation waits shows in its type as everywhere: the
results of ``top_k`` and ``segment_count`` run in fewer loops than their operands, so that they come
after the last element; what reads them inside that loop (``segment_rank`` its offsets) waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BOOL, I32
from tilewright.ir.ops_routing import (
    SCATTERS,
    counted,
    prefix_sum,
    scattered,
    segment_ranks,
    taken,
)
from tilewright.ir.ops_stream import StreamOp, over
from tilewright.ir.selection import TIES, top_k
from tilewright.ir.sizes import Size
from tilewright.ir.types import Axis, StreamType, Type


class StreamRouting(StreamOp, traits=("routing",)):
    """Base: along which axes an operation works."""

    def along(self, type_: StreamType, axes: Sequence[str]) -> bool:
        """True if ``axes`` is the innermost loop, False if they are axes of the element."""
        if type_.loops and tuple(axes) == (type_.loops[-1].name,):
            return True
        names = [a.name for a in type_.element]
        known = bool(axes) and len(set(axes)) == len(axes) and set(axes) <= set(names)
        self.require(known, f"{list(axes)} is neither the innermost loop nor the element's axes")
        return False

    def innermost(self, type_: StreamType, axis: str) -> None:
        fits = bool(type_.loops) and type_.loops[-1].name == axis
        self.require(fits, f"{axis!r} must be the innermost loop")

    def runs_with(self, type_: StreamType, loops: tuple[Axis, ...]) -> None:
        self.require(type_.loops in ((), loops), "streams must run in the same loops (repeat one)")


def without(axes: Sequence[Axis], names: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that are not called so."""
    return tuple(a for a in axes if a.name not in names)


class StreamTopK(StreamRouting, name="stream.top_k"):
    """The k largest of the innermost loop (after its last element) or of element axes (several:
    mixed radix), and their positions, along a new element axis ``kept`` of k places.

    Otherwise as tensor.top_k. A fold whose state is a sorted list of k numbers.
    """

    x: Value = operand()
    axes: tuple[str, ...] = attribute()
    kept: Axis = attribute()
    largest: bool = attribute(default=True)
    ties: str = attribute(default="lowest")
    ordered: bool = attribute(default=True)

    def infer(self) -> tuple[Type, ...]:
        type_ = self.stream(self.x)
        self.along(type_, self.axes)
        rest = without(type_.loops, self.axes), without(type_.element, self.axes)
        count = self.kept.size.constant
        self.require(count is not None and count >= 1, "kept must have a number of places")
        known = self.kept.name not in [a.name for part in rest for a in part]
        self.require(known, f"the stream already runs over {self.kept.name}")
        self.require(self.ties in TIES, "ties is lowest or torch")
        self.require(self.ordered or self.ties == "torch", "only torch has an order of its own")
        self.require(type_.dtype != BOOL, "the elements must be numbers")
        element = (*rest[1], self.kept)
        return StreamType(rest[0], element, type_.dtype), StreamType(rest[0], element, I32)

    def reference(self, x: Any) -> Any:
        rows = axes_last(x, self.stream(self.x), self.axes)
        k = self.kept.size.constant
        assert k is not None
        if k > rows.shape[-1]:
            raise ValueError(f"{k} of a row of {rows.shape[-1]}")
        at = top_k(rows, k, self.largest, self.ties == "torch", self.ordered)
        return np.take_along_axis(rows, at, -1), at


class StreamTakeAlong(StreamRouting, name="stream.take_along"):
    """A map: numbers of the element's ``axes`` at positions that the elements of ``ids`` give."""

    x: Value = operand()
    ids: Value = operand()
    axes: tuple[str, ...] = attribute()

    def infer(self) -> Type:
        type_, ids = self.stream(self.x), self.stream(self.ids)
        self.require(not self.along(type_, self.axes), "takes along the element's axes")
        self.require(ids.dtype.is_int, "ids must be integers")
        loops = max(type_.loops, ids.loops, key=len)
        self.runs_with(type_, loops)
        self.runs_with(ids, loops)
        element = without(type_.element, self.axes)
        element += tuple(a for a in ids.element if a not in element)
        self.require(len({a.name for a in element}) == len(element), "one axis has two sizes")
        return StreamType(loops, element, type_.dtype)

    def reference_axes(self, x: Any, ids: Any, sizes: dict[str, int]) -> Any:
        type_, out = self.stream(self.x), self.stream(self.result)
        rows = axes_last(x, type_, self.axes)
        wide = over(rows, without(type_.axes, self.axes), out.axes, rest=1)
        at = over(ids, self.stream(self.ids).axes, out.axes)
        shape = [sizes[a.name] for a in out.axes]
        wide = np.broadcast_to(wide, (*shape, rows.shape[-1]))
        return taken(wide, np.broadcast_to(at, shape)[..., None], -1)[..., 0]


class StreamScatter(StreamRouting, name="stream.scatter"):
    """A map: elements of ``type`` which are those of x but for the places along ``axes`` that the
    numbers of ``ids`` along its axes ``given`` name: these get (``kind`` sum: are increased by) the
    numbers of ``source``. As tensor.scatter."""

    x: Value = operand()
    ids: Value = operand()
    source: Value = operand()
    axes: tuple[str, ...] = attribute()
    given: tuple[str, ...] = attribute()
    kind: str = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        x, ids, source = (self.stream(v) for v in self.operands)
        out = self.type
        self.require(isinstance(out, StreamType), "type must be a stream")
        assert isinstance(out, StreamType)
        self.require(self.kind in SCATTERS, "kind is set or sum")
        self.require(not self.along(out, self.axes), "scatters along the element's axes")
        self.require(not self.given or not self.along(ids, self.given), "ids has no such axes")
        self.require(ids.dtype.is_int, "ids must be integers")
        self.require(
            x.dtype == source.dtype == out.dtype, "x and source must have the type's dtype"
        )
        self.require(self.kind == "set" or out.dtype != BOOL, "sums are of numbers")
        for type_ in (x, ids, source):
            self.runs_with(type_, out.loops)
        rest = set(without(out.element, self.axes))
        inside = set(x.element) <= set(out.element) and set(source.element) <= set(ids.element)
        fits = inside and set(without(ids.element, self.given)) <= rest
        self.require(fits, "an operand runs along an axis that the result does not have")
        return out

    def reference_axes(self, x: Any, ids: Any, source: Any, sizes: dict[str, int]) -> Any:
        out, ids_type = self.stream(self.result), self.stream(self.ids)
        rest = without(out.axes, self.axes)
        targets, places = named(out.element, self.axes), named(ids_type.element, self.given)

        def rows(array: Any, value: Value, last: tuple[Axis, ...]) -> Any:
            have = renamed(self.stream(value).axes, last)
            view = over(array, have, (*rest, *renamed(last, last)))
            shape = [sizes[a.name] for a in (*rest, *last)]
            lead, count = shape[: len(rest)], math.prod(shape[len(rest) :])
            return np.broadcast_to(view, shape).reshape(*lead, count)

        at, values = rows(ids, self.ids, places), rows(source, self.source, places)
        flat = scattered(rows(x, self.x, targets), at, values, self.kind)
        split = flat.reshape([sizes[a.name] for a in (*rest, *targets)])
        return over(split, (*rest, *targets), out.axes)


class StreamSegmentCount(StreamRouting, name="stream.segment_count"):
    """How many ids of the whole innermost loop ``axis`` are 0, 1, …: one element along the new axis
    ``segments``, after the last. A fold whose state is one counter for every segment.

    With ``parts`` above 1 each of so many equal parts of the loop (the last ones shorter or empty)
    is counted by itself, so that several workers can: elements along the axis "part" and segments.
    """

    ids: Value = operand()
    axis: str = attribute()
    segments: Axis = attribute()
    parts: int = attribute(default=1)

    def infer(self) -> Type:
        type_ = self.stream(self.ids)
        self.require(type_.dtype.is_int, "ids must be integers")
        self.innermost(type_, self.axis)
        loops = type_.loops[:-1]
        known = self.segments.name not in [a.name for a in loops]
        self.require(known, f"the stream already runs over {self.segments.name}")
        self.require(self.parts >= 1, "parts must be positive")
        part = (Axis("part", Size.of(self.parts)),) if self.parts > 1 else ()
        return StreamType(loops, (*part, self.segments), I32)

    def reference_axes(self, ids: Any, sizes: dict[str, int]) -> Any:
        outer, count = ids.shape[: len(self.stream(self.ids).loops) - 1], sizes[self.segments.name]
        out = np.zeros((*outer, self.parts, count), np.int64)
        for at in np.ndindex(outer):
            each = -(-len(ids[at]) // self.parts)
            for part in range(self.parts):
                own = ids[at][part * each : (part + 1) * each]
                out[(*at, part)] = counted(own.reshape(-1), count)
        return out if self.parts > 1 else out[..., 0, :]


class StreamPrefixSum(StreamRouting, name="stream.prefix_sum"):
    """Running sums: a scan of the innermost loop (state: one element), or a map along element axes.
    As tensor.prefix_sum."""

    x: Value = operand()
    axes: tuple[str, ...] = attribute()
    exclusive: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        self.along(type_, self.axes)
        self.require(type_.dtype != BOOL, "sums are of numbers (use math.cast)")
        return type_

    def reference(self, x: Any) -> Any:
        type_ = self.stream(self.x)
        rows = axes_last(x, type_, self.axes)
        sums = prefix_sum(rows, -1, self.exclusive)
        rest, ends = without(type_.axes, self.axes), named(type_.axes, self.axes)
        split = sums.reshape(*sums.shape[:-1], *(x.shape[type_.axes.index(a)] for a in ends))
        return over(split, (*rest, *ends), type_.axes)


class StreamSegmentRank(StreamRouting, name="stream.segment_rank"):
    """As tensor.segment_rank for ids that come in the order of the innermost loop ``axis``, those
    of one element in its order. A scan whose state is one counter for every segment."""

    ids: Value = operand()
    offsets: Value = operand()
    axis: str = attribute()

    def infer(self) -> Type:
        ids, offsets = self.stream(self.ids), self.stream(self.offsets)
        self.require(ids.dtype.is_int and offsets.dtype.is_int, "operands must be integers")
        self.innermost(ids, self.axis)
        self.require(offsets.loops == ids.loops, "offsets must run in the same loops (repeat it)")
        self.require(len(offsets.element) == 1, "offsets has one number for every segment")
        return StreamType(ids.loops, ids.element, I32)

    def reference(self, ids: Any, offsets: Any) -> Any:
        outer = ids.shape[: len(self.stream(self.ids).loops) - 1]
        out = np.zeros(ids.shape, np.int64)
        if ids.size:
            for at in np.ndindex(outer):
                out[at] = segment_ranks(ids[at].reshape(-1), offsets[at][0]).reshape(ids[at].shape)
        return out


# ---- arrays over named axes


def axes_last(array: Any, type_: StreamType, axes: Sequence[str]) -> Any:
    """An array over the axes of a stream with some of them, merged into one, behind the others."""
    names = [a.name for a in type_.axes]
    order = [i for i, n in enumerate(names) if n not in axes] + [names.index(n) for n in axes]
    moved = np.transpose(array, order)
    lead = moved.shape[: len(names) - len(axes)]
    return moved.reshape(*lead, math.prod(moved.shape[len(lead) :]))


def named(axes: Sequence[Axis], names: Sequence[str]) -> tuple[Axis, ...]:
    """The axes called ``names``, in that order."""
    return tuple(a for n in names for a in axes if a.name == n)


def renamed(axes: Sequence[Axis], which: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes, those in ``which`` under a name of their own: an operand may run along an axis of
    the result in another meaning."""
    return tuple(Axis(f"{a.name}'", a.size) if a in which else a for a in axes)
