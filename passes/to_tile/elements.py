"""Maps that know where in an element they are: positions as numbers, rolls along its axis, and what
lies past its end."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.passes.to_tile.kernel_info import finite_past_end
from tilewright.passes.to_tile.state import LoweringState


def index_at(
    state: LoweringState, op: s.Index, at: dict[str, Value], layout: Layout, dim: int
) -> Value:
    """The position on a loop, or on an element's axis, which runs along tile dimension ``dim``."""
    dtype = state.dtype(op.result)
    if not state.info.element(op.result):
        return state.build.number_of(at[op.axis], dtype)
    return state.build.positions_along(dim, layout, at[op.axis], dtype, op.result.hint)


def rolled(state: LoweringState, op: s.Roll, at: dict[str, Value], width: int) -> dict[str, Value]:
    """Positions at which to read what a roll moves to ``at``, a vector of ``width`` elements.

    Raises UnsupportedError if a vector would be made of both ends of the element."""
    b = state.build
    axis = next(a for a in state.info.element(op.x) if a.name == op.axis)
    length = axis.size.constant or 1  # of none nothing is moved
    if length % width or op.shift % width:
        message = f"a roll by {op.shift} of {length} elements, {width} at a time"
        raise UnsupportedError(message, op.loc)
    moved = b.mod(b.add(at[axis.name], (-op.shift) % length), length)
    return {**at, axis.name: moved}


def cut_off(
    state: LoweringState, value: Value, x: Value, at: Value, layout: Layout, dim: int
) -> Value:
    """``x``, a vector of ``value``'s element along tile dimension ``dim`` from ``at``, with zeros
    past the element's end.

    Loads give zeros there, but what is computed from those may be no number (1 / 0, log 0), and
    times the zeros of a product's other side it would be none either.
    """
    b, axis = state.build, state.info.element(value)[0]
    length = axis.size.constant or 0
    if length % layout.shape[dim] == 0 or finite_past_end(state.info, value):
        return x
    rank = layout.rank
    place = b(t.Coordinate, dim=dim, layout=layout)
    left = b.splat(b.sub(b.index(length), at), rank)
    inside = b(m.Compare, place, left, relation="lt")
    return b(m.Select, inside, x, b.number(0.0, state.dtype(value), rank), hint=x.hint)
