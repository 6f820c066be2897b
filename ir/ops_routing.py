"""Operations on tensors of which routing to experts is made: the k largest, positions, counts.

Each is deterministic. Positions that an operation gives are i32; ids that it takes are integers of
any width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BOOL, I32
from tilewright.ir.ops_tensor import TensorOp
from tilewright.ir.selection import TIES, ranks, top_k
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType, Type

SCATTERS = ("set", "sum")


class TopK(TensorOp, name="tensor.top_k"):
    """The k largest of the last axis, the largest first, and their positions.

    NaN counts as largest. Of equal numbers that at the lower position comes first; with ``ties =
    "torch"`` as torch.topk on CPUs does it (selection.py), and with ``ordered = false`` in the
    order of its sorted=False. ``largest = false``: the smallest.
    """

    x: Value = operand()
    k: int = attribute()
    largest: bool = attribute(default=True)
    ties: str = attribute(default="lowest")
    ordered: bool = attribute(default=True)

    def infer(self) -> tuple[Type, ...]:
        type_ = self.tensor(self.x)
        self.require(bool(type_.shape), "needs a dimension to choose from")
        size = type_.shape[-1].constant
        self.require(self.k >= 1 and (size is None or self.k <= size), f"1 <= k <= {size or 'E'}")
        self.require(self.ties in TIES, "ties is lowest or torch")
        self.require(self.ordered or self.ties == "torch", "only torch has an order of its own")
        self.require(type_.dtype != BOOL, "the elements must be numbers")
        shape = (*type_.shape[:-1], Size.of(self.k))
        return TensorType(shape, type_.dtype), TensorType(shape, I32)

    def reference(self, x: Any) -> Any:
        if self.k > x.shape[-1]:
            raise ValueError(f"{self.k} of a row of {x.shape[-1]}")
        at = top_k(x, self.k, self.largest, self.ties == "torch", self.ordered)
        return np.take_along_axis(x, at, -1), at


class SortOrder(TensorOp, name="tensor.sort_order"):
    """The positions that sort ``axis``, stable: equal elements stay in order. NaN counts as
    largest."""

    x: Value = operand()
    axis: int = attribute()
    descending: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        self.axis_of(self.axis, len(type_.shape))
        return TensorType(type_.shape, I32)

    def reference(self, x: Any) -> Any:
        last = np.moveaxis(x, self.axis, -1)
        order = np.argsort(ranks(last, self.descending), axis=-1, kind="stable")
        return np.moveaxis(order, -1, self.axis)


class TakeAlong(TensorOp, name="tensor.take_along"):
    """Elements of ``axis`` at positions ``ids``: out[t, j] = x[t, ids[t, j]] for axis 1.

    Both have the same other dimensions. A position outside reads the nearest element inside.
    """

    x: Value = operand()
    ids: Value = operand()
    axis: int = attribute()

    def infer(self) -> Type:
        type_, ids = self.tensor(self.x), self.tensor(self.ids)
        self.require(ids.dtype.is_int, "ids must be integers")
        axis = self.axis_of(self.axis, len(type_.shape))
        self.require(_others(type_, axis) == _others(ids, axis), "all other dimensions must agree")
        return TensorType(ids.shape, type_.dtype)

    def reference(self, x: Any, ids: Any) -> Any:
        return taken(x, ids, self.axis)


class Scatter(TensorOp, name="tensor.scatter"):
    """x with elements of ``axis`` at positions ``ids`` replaced (``kind`` set) or increased (sum)
    by those of ``source``: out[t, ids[t, j]] = source[t, j] for axis 1.

    All have the same other dimensions. In the order of the positions in memory: of several put into
    one place the last stays. A position outside is passed over.
    """

    x: Value = operand()
    ids: Value = operand()
    source: Value = operand()
    axis: int = attribute()
    kind: str = attribute()

    def infer(self) -> Type:
        type_, ids, source = (self.tensor(v) for v in self.operands)
        self.require(self.kind in SCATTERS, "kind is set or sum")
        self.require(ids.dtype.is_int, "ids must be integers")
        self.require(source.dtype == type_.dtype, "source must have the dtype of x (use math.cast)")
        self.require(source.shape == ids.shape, "source must have the shape of ids")
        axis = self.axis_of(self.axis, len(type_.shape))
        self.require(_others(type_, axis) == _others(ids, axis), "all other dimensions must agree")
        self.require(self.kind == "set" or type_.dtype != BOOL, "sums are of numbers")
        return type_

    def reference(self, x: Any, ids: Any, source: Any) -> Any:
        x, ids, source = (np.moveaxis(a, self.axis, -1) for a in (x, ids, source))
        return np.moveaxis(scattered(x, ids, source, self.kind), -1, self.axis)


class SegmentCount(TensorOp, name="tensor.segment_count"):
    """How many of all ids are 0, 1, …, ``segments`` - 1 (others are not counted): i32."""

    ids: Value = operand()
    segments: Size = attribute()

    def infer(self) -> Type:
        self.require(self.tensor(self.ids).dtype.is_int, "ids must be integers")
        size = self.segments.constant
        self.require(size is None or size >= 0, "segments must not be negative")
        return TensorType((self.segments,), I32)

    def reference_sized(self, ids: Any, shape: tuple[int, ...]) -> Any:
        return counted(ids.reshape(-1), shape[0])


class PrefixSum(TensorOp, name="tensor.prefix_sum"):
    """Sums of the elements up to each along ``axis``; ``exclusive`` without the element itself."""

    x: Value = operand()
    axis: int = attribute()
    exclusive: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        self.axis_of(self.axis, len(type_.shape))
        self.require(type_.dtype != BOOL, "sums are of numbers (use math.cast)")
        return type_

    def reference(self, x: Any) -> Any:
        return prefix_sum(x, self.axis, self.exclusive)


class SegmentRank(TensorOp, name="tensor.segment_rank"):
    """Where each element goes when all are sorted by id, stable: i32 of the ids' shape.

    offsets[id] (where its segment begins: the exclusive prefix sum of the counts) + how many
    elements before it, in row-major order, have the same id. -1 for an id outside of ``offsets``
    [E]. This is the second pass of a counting sort.
    """

    ids: Value = operand()
    offsets: Value = operand()

    def infer(self) -> Type:
        ids, offsets = self.tensor(self.ids), self.tensor(self.offsets)
        self.require(ids.dtype.is_int and offsets.dtype.is_int, "operands must be integers")
        self.require(len(offsets.shape) == 1, "offsets has one number for every segment")
        return TensorType(ids.shape, I32)

    def reference(self, ids: Any, offsets: Any) -> Any:
        return segment_ranks(ids.reshape(-1), offsets).reshape(ids.shape)


def _others(type_: TensorType, axis: int) -> tuple[Size, ...]:
    return type_.shape[:axis] + type_.shape[axis + 1 :]


# ---- the meanings on arrays, which the stream level shares


def taken(x: Any, ids: Any, axis: int) -> Any:
    """NumPy's take_along_axis with positions moved inside; zeros if there is nothing to take."""
    if not x.shape[axis]:
        return np.zeros(ids.shape, x.dtype)
    inside = np.clip(ids, 0, x.shape[axis] - 1).astype(np.int64)
    return np.take_along_axis(x, inside, axis)


def scattered(x: Any, ids: Any, source: Any, kind: str) -> Any:
    """Scatter along the last axis: x [.., n], ids and source [.., m]."""
    out = np.array(x)
    count = math.prod(x.shape[:-1])
    rows, columns = out.reshape(count, x.shape[-1]), ids.reshape(count, ids.shape[-1])
    at = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)
    inside = (columns >= 0) & (columns < x.shape[-1])
    place = at[inside], columns[inside].astype(np.int64)
    values = np.broadcast_to(source, ids.shape).reshape(columns.shape)[inside]
    with np.errstate(all="ignore"):
        if kind == "sum":
            np.add.at(rows, place, values)  # one after another
        else:
            rows[place] = values  # the last of several stays
    return rows.reshape(x.shape)


def counted(ids: Any, segments: int) -> Any:
    """How often 0, …, segments - 1 occur in ids [n]."""
    inside = ids[(ids >= 0) & (ids < segments)]
    return np.bincount(inside.astype(np.int64), minlength=segments)[:segments]


def prefix_sum(x: Any, axis: int, exclusive: bool) -> Any:
    """Running sums along an axis in the dtype of ``x``."""
    with np.errstate(all="ignore"):
        sums = np.cumsum(x, axis, dtype=x.dtype)
    if not exclusive:
        return sums
    shifted = np.roll(sums, 1, axis)
    first = [slice(None)] * x.ndim
    first[axis] = slice(0, 1)
    shifted[tuple(first)] = 0
    return shifted


def segment_ranks(ids: Any, offsets: Any) -> Any:
    """offsets [E] at ids [n] plus how often the id came before; -1 for ids outside."""
    inside = (ids >= 0) & (ids < len(offsets))
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.searchsorted(ordered, ordered, side="left")
    earlier = np.empty(len(ids), np.int64)
    earlier[order] = np.arange(len(ids)) - first
    if not len(offsets):
        return np.full(len(ids), -1)
    start = offsets[np.where(inside, ids, 0).astype(np.int64)]
    return np.where(inside, start + earlier, -1)
