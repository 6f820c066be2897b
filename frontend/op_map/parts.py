"""Slices along the last dimension and their concatenation, for the nodes of a rotation only.

They are no part of the op map: copies and joins of tensors stay with torch, but for the pattern
that ``rotations.py`` finds, whose nodes it gives these entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.registry import Entry, Kind
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Value


def _last(x: Value) -> int:
    return len(tensor_type(x).shape) - 1


def slice_entry(start: int, stop: int) -> Entry:
    """Elements ``start`` to ``stop`` of the last dimension, however that is written."""

    def handler(e: Emitter, input: Value, *_given: object, **_named: object) -> Value:
        return e.op(t.Slice, input, axis=_last(input), start=start, stop=stop)

    return Entry("slice", Kind.SHAPE, handler)


def chunks_entry(lengths: Sequence[int]) -> Entry:
    """The last dimension in parts of these lengths."""
    ends = [sum(lengths[:at]) for at in range(len(lengths) + 1)]

    def handler(e: Emitter, input: Value, *_given: object, **_named: object) -> tuple[Value, ...]:
        return tuple(
            e.op(t.Slice, input, axis=_last(input), start=start, stop=stop)
            for start, stop in pairwise(ends)
        )

    return Entry("chunks", Kind.SHAPE, handler)


def _chosen(e: Emitter, input: tuple[Value, ...], index: int) -> Value:
    return input[index]


def _joined(e: Emitter, tensors: tuple[Value, ...], *_dim: object, **_named: object) -> Value:
    """In the dtype of arithmetic: a choice between parts is an operation on registers."""
    wide = arithmetic_dtype(e.dtype)
    parts = (e.cast(e.cast(x, e.dtype), wide) for x in tensors)
    return e.cast(e.op(t.Concat, *parts, axis=_last(tensors[0])), e.dtype)


CHUNK = Entry("chunk", Kind.SHAPE, _chosen)
CAT = Entry("cat", Kind.SHAPE, _joined)
