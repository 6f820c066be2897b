"""Maps that know where in an element they are: positions as numbers, rolls along its axis."""

from __future__ import annotations

from tilewright.ir import ops_stream as s
from tilewright.ir.core import Value
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
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
