"""Look-ups of a block of tokens: tables at computed positions, places of a token's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.ops_routing_stream import StreamScatter, StreamTakeAlong
from tilewright.ir.types import Axis, TensorType
from tilewright.passes.to_tile.routing.info import FEW

if TYPE_CHECKING:
    from tilewright.passes.to_tile.routing.values import Values

At = Mapping[str, Value]


def gather(values: Values, op: s.Gather, at: At, memo: dict[Value, Value]) -> Value:
    b, given, total = values.b, list(op.indices), None
    assert isinstance(op.tensor.type, TensorType)
    buffer = values.state.buffers[op.tensor]
    for dim, (names, size) in enumerate(zip(op.dims, op.tensor.type.shape, strict=True)):
        if names == (s.INDEXED,):
            index = values.at(given.pop(0), at, memo)
            last = b.splat(b.sub(b.size(size), 1))
            index = b(m.Max, b(m.Min, _wide(values, index), last), b.number(0, I64), hint="inside")
        else:
            index = b.splat(at[names[0]])
        stride = b.splat(b(t.StrideOf, buffer, dim=dim, hint="stride"))
        term = b(m.Mul, index, stride, hint="along")
        total = term if total is None else b(m.Add, total, term, hint="offsets")
    assert total is not None
    return b(t.Gather, buffer, b.index(0), total, hint=op.result.hint)


def _wide(values: Values, x: Value) -> Value:
    return x if getattr(x.type, "dtype", I64) == I64 else values.b(m.Cast, x, dtype=I64)


def take_along(values: Values, op: StreamTakeAlong, at: At, memo: dict[Value, Value]) -> Value:
    """Element ``ids`` of the places along some axes, each token its own."""
    b, where, ids = values.b, values.stored[op.x], values.at(op.ids, at, memo)
    taken = [a for a in where.axes if a.name in op.axes]
    last = b.number(values.count(taken) - 1, I64)
    inside = b(m.Max, b(m.Min, _wide(values, ids), last), b.number(0, I64), hint="inside")
    columns = FEW if where.wide else values.lanes if where.tokens else 1
    # ids count along the taken axes in the order of ``op.axes``, memory in that of the element
    total = b.splat(values.column(where))
    if where.tokens:
        here = b(t.Coordinate, dim=1, layout=values.across)
        total = b(m.Add, total, here, hint="offsets")
    rest = inside
    for name in reversed(op.axes):
        axis = next(a for a in taken if a.name == name)
        size = b.number(values.size(axis), I64)
        own = rest if name == op.axes[0] else b(m.Mod, rest, size)
        rest = rest if name == op.axes[0] else b(m.Div, rest, size)
        step = _step(values, where.axes, axis) * columns
        total = b(m.Add, total, b(m.Mul, own, b.number(step, I64)), hint="offsets")
    for axis in where.axes:
        if axis not in taken:
            step = _step(values, where.axes, axis) * columns
            total = b(m.Add, total, b.splat(b.mul(at[axis.name], step)), hint="offsets")
    return b(t.Gather, where.memory, b.index(0), total, hint=op.result.hint)


def _step(values: Values, axes: Sequence[Axis], axis: Axis) -> int:
    return values.count(axes[list(axes).index(axis) + 1 :])


def scatter(values: Values, op: StreamScatter, at: At, memo: dict[Value, Value]) -> Value:
    """x at a place, or what was put there: every given number asks whether it is its place."""
    b = values.b
    element = {a.name: a for a in values.element(op.result)}
    given = {a.name: a for a in values.element(op.ids)}
    place = values.flat([element[n] for n in op.axes], at)
    target = values.state.build.number_of(place, values.state.dtype(op.ids))
    value = values.at(op.x, at, memo)
    axes = [given[n] for n in op.given]
    where = _cell(values, op, value)
    with values.places(axes, {k: v for k, v in at.items() if k not in op.given}) as inner:
        before = b.load(where, [b.index(0), b.index(0)], (0, 1), values.across, hint="before")
        here = b(m.Compare, values.at(op.ids, inner), target, relation="eq", hint="here")
        new = values.at(op.source, inner)
        if op.kind == "sum":
            new = b(m.Add, before, new, hint="sum")
        after = b(m.Select, here, new, before, hint="after")
        b.store(after, where, [b.index(0), b.index(0)], (0, 1))
    return b.load(where, [b.index(0), b.index(0)], (0, 1), values.across, hint=op.result.hint)


def _cell(values: Values, op: Op, value: Value) -> Value:
    """Scratch for one number of every token, which holds ``value``."""
    b = values.b
    where = b.scratch([1, values.lanes], values.state.dtype(op.result), "cell")
    b.store(values.spread(value), where, [b.index(0), b.index(0)], (0, 1))
    return where
