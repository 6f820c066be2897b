"""The common type of a pointwise operation's operands: sizes as in NumPy, streams by the names of
their axes, register tiles by their layouts."""

from __future__ import annotations

import math

from tilewright.ir.core import Op
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    Axis,
    BufferType,
    RegisterType,
    ScratchType,
    StreamType,
    TensorType,
    Type,
)


def broadcast_types(op: Op, types: list[Type]) -> Type:
    """The common type of pointwise operands, dtype of the first; raises the op's error."""
    first = types[0]
    op.require(not isinstance(first, BufferType | ScratchType), "memory has to be loaded first")
    if all(t is first for t in types):
        return first
    op.require(all(type(t) is type(first) for t in types), "operands must be of one level")
    if isinstance(first, TensorType):
        shape = _broadcast_shape(op, [t.shape for t in types if isinstance(t, TensorType)])
        return TensorType(shape, first.dtype)
    if isinstance(first, StreamType):
        return _broadcast_streams(op, [t for t in types if isinstance(t, StreamType)])
    if isinstance(first, RegisterType):
        layouts = [t.layout for t in types if isinstance(t, RegisterType)]
        return RegisterType(first.dtype, broadcast_layouts(op, layouts))
    return first


def _broadcast_shape(op: Op, shapes: list[tuple[Size, ...]]) -> tuple[Size, ...]:
    rank = max(len(s) for s in shapes)
    out = []
    for at in range(rank):
        dims = {s[at - rank + len(s)] for s in shapes if at - rank + len(s) >= 0}
        dims = dims - {Size.of(1)} or {Size.of(1)}
        named = ", ".join(str(d) for d in sorted(dims, key=str))
        op.require(len(dims) == 1, f"sizes {named} of dimension {at} do not broadcast")
        out.append(dims.pop())
    return tuple(out)


def _broadcast_streams(op: Op, types: list[StreamType]) -> StreamType:
    loops = max((t.loops for t in types), key=len)
    for t in types:
        op.require(t.loops in ((), loops), "streams must run in the same loops (repeat one)")
    element: list[Axis] = []
    for t in types:
        element.extend(a for a in t.element if a not in element)
    names = [a.name for a in element]
    op.require(len(set(names)) == len(names), "one axis has two sizes")
    return StreamType(loops, tuple(element), types[0].dtype)


def broadcast_layouts(op: Op, layouts: list[Layout]) -> Layout:
    """The layout of which every operand's is a part with some dimensions collapsed."""
    first = layouts[0]
    if all(y == first for y in layouts[1:]):
        return first
    shaped = [y for y in layouts if y.registers != 1 or y.lanes != 1] or layouts[:1]
    op.require(len({y.rank for y in layouts}) == 1, "tiles must have the same rank")
    common = max(shaped, key=lambda y: (math.prod(y.shape), y.registers))
    if not all(y.is_part_of(common) for y in shaped):
        common = shaped[0]
        for other in shaped[1:]:
            found = common.join(other)
            if found is None:
                raise op.error(f"layouts {common} and {other} do not go together")
            common = found
    for other in shaped:
        if not other.is_part_of(common):
            raise op.error(f"layouts {other} and {common} put elements on different lanes")
    return common
