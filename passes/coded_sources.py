"""Tensors of codes as sources of streams: packed weights, cached keys and values."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.core import Builder, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_cache import CachedStream, CachedTensor
from tilewright.ir.ops_lowbit import Dequantize, StreamDequantize
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.axes import AxisMap
from tilewright.passes.loop_order import LoopOrder


def dequantized(
    op: Dequantize, axes: AxisMap, order: LoopOrder, parallel: tuple[Axis, ...], build: Builder
) -> Value:
    """A source that reads packed codes: rows are a loop, the codes of a row its element."""
    rows, codes = (axes.resolve(d) for d in axes.dims[op.result])
    if len(rows) > 1 or len(codes) > 1 or not set(codes) <= order.element:
        raise UnsupportedError("packed codes along other than an element's axis", op.loc)
    if order.streamed in rows or set(rows) & order.element:
        raise UnsupportedError("rows of packed codes that are not a loop", op.loc)
    element = tuple(axes.axis(x) for x in codes)
    kept = ("packing", "dtype", "zero", "extra", "scale", "signed")
    given = {key: op.attrs[key] for key in kept}
    return build(
        StreamDequantize,
        *op.operands,
        dims=(tuple(map(axes.name, rows)), tuple(map(axes.name, codes))),
        type=StreamType(parallel, element, F32),
        hint=op.result.hint,
        **given,
    )


def cached(
    op: CachedTensor,
    axes: AxisMap,
    order: LoopOrder,
    loops: Callable[[frozenset[int]], tuple[Axis, ...]],
    build: Builder,
) -> Value:
    """A source that reads a cache: a token's channels are the element, all else are loops."""
    dims = axes.resolved(axes.dims[op.result])
    outer = {x for dim in dims[:3] for x in dim}
    if not dims[3]:
        raise UnsupportedError("cached tokens of one channel", op.loc)
    if len(dims[2]) > 1 or len(dims[3]) > 1 or not set(dims[3]) <= order.element:
        raise UnsupportedError("cached channels along other than an element's axis", op.loc)
    if outer & order.element:
        raise UnsupportedError("cached tokens inside an element", op.loc)
    kept = ("tokens", "bits", "by", "group", "zero", "zeros")
    return build(
        CachedStream,
        *op.operands,
        dims=tuple(tuple(map(axes.name, dim)) for dim in dims),
        type=StreamType(loops(axes.flat(dims)), tuple(axes.axis(x) for x in dims[3]), F32),
        hint=op.result.hint,
        **{key: op.attrs[key] for key in kept},
    )
