"""Parts of an axis put together in another order, as in rotary position embeddings, become maps.

``concat(-x[n/2:], x[:n/2])``  ->  ``select(d < n/2, -roll(x, n/2), roll(x, n/2))``

A slice from ``start`` that comes to lie at ``offset`` is x rolled by offset - start, looked at
there only; a pointwise function of slices is the function of the rolled tensors. What was a copy of
parts is then a map of whole elements, which needs constant depth and fuses like every other.
"""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph


def join_halves_graph(graph: Graph) -> Graph:
    """Every concatenation of pointwise functions of slices as a map; others stay."""
    if not any(isinstance(op, t.Concat) for op in graph.body.ops):
        return graph
    return rewrite_graph(graph, _joined)


def _joined(b: Rewriter, op: Op) -> Value | None:
    if not isinstance(op, t.Concat):
        return None
    whole = _shape(op.result)
    axis = op.axis_of(op.axis, len(whole))
    total = whole[axis].constant
    lengths = [_shape(part)[axis].constant for part in op.parts]
    if not total or None in lengths:
        return None
    parts, offset = [], 0
    for part, length in zip(op.parts, lengths, strict=True):
        moved = _moved(b, part, axis - len(whole), total, offset)
        if moved is None:
            return None
        offset += length or 0
        parts.append((moved, offset))
    return _chosen(b, parts, axis - len(whole), len(whole), total)


def _shape(value: Value) -> tuple[Size, ...]:
    assert isinstance(value.type, TensorType)
    return value.type.shape


def _moved(b: Rewriter, value: Value, axis: int, total: int, offset: int) -> Value | None:
    """``value``, part of a concatenation from ``offset``, over the whole axis (counted from the
    last); None if it is no function of slices of tensors of that size."""
    shape, op = _shape(value), b.producer(value)
    if isinstance(op, t.Slice) and op.axis_of(op.axis, len(shape)) == len(shape) + axis:
        if _shape(op.x)[axis] != Size.of(total):
            return None
        shift = (offset - op.start) % total
        at = len(shape) + axis
        return b(t.Roll, op.x, axis=at, shift=shift, hint=value.hint) if shift else op.x
    if len(shape) < -axis or shape[axis] == Size.of(1):
        return value  # the same everywhere
    if op is None or "pointwise" not in op.traits or not op.operands:
        return None
    operands = [_moved(b, v, axis, total, offset) for v in op.operands]
    known = [v for v in operands if v is not None]
    return b(type(op), *known, hint=value.hint, **op.attrs) if len(known) == len(operands) else None


def _chosen(b: Rewriter, parts: list[tuple[Value, int]], axis: int, rank: int, total: int) -> Value:
    """The part whose stretch a position lies in."""
    sizes = [Size.of(total if at == rank + axis else 1) for at in range(rank)]
    here = b(t.Iota, axis=rank + axis, type=TensorType(tuple(sizes), I64), hint="place")
    (out, _), *others = reversed(parts)
    for value, end in others:
        bound = b.const(end, TensorType((), I64))
        inside = b(m.Compare, here, bound, relation="lt", hint="inside")
        out = b(m.Select, inside, value, out, hint="joined")
    return out


def join_halves(module: Module) -> Module:
    """Concatenations of slices in all tensor graphs."""
    return for_each_graph(module, join_halves_graph, "graph")
