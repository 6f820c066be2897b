"""What a value is along one loop: the same for every step, or known only when the loop is over.

*Constant*: one value for all steps of the loop. *Late*: it depends on a reduction along the loop,
so that it comes when the last element has been seen; a stream combined with it has to wait, which
is what makes a channel deep.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.types import StreamType
from tilewright.passes.rewrite import Rewriter


def stream_type(value: Value) -> StreamType:
    assert isinstance(value.type, StreamType)
    return value.type


def is_float(value: Value) -> bool:
    return isinstance(value.type, StreamType) and value.type.dtype.is_float


def scalar_of(value: Value) -> StreamType:
    """The type of one number of the value's dtype."""
    return StreamType((), (), stream_type(value).dtype)


Made = Mapping[Value, Op]  # which op made a value: ``Graph.producers()``, or a rewriter's own


def casts_floats(made: Made, value: Value) -> m.Cast | None:
    """The op if ``value`` is a conversion between floats: the identity in exact arithmetic."""
    op = made.get(value)
    return op if isinstance(op, m.Cast) and is_float(op.x) and is_float(value) else None


class Along:
    """Answers for one loop of a graph."""

    def __init__(self, made: Made, axis: str, known: dict[tuple[str, Value], bool]) -> None:
        """``known`` remembers which values are late, for as long as ``made`` only grows."""
        self.made, self.axis, self.known = made, axis, known

    def constant(self, value: Value) -> Value | None:
        """What is repeated along the loop (or a number), if ``value`` is constant along it."""
        if not stream_type(value).loops:
            return value
        op = self.made.get(value)
        return op.x if isinstance(op, s.Repeat) and op.axis.name == self.axis else None

    def late(self, value: Value) -> bool:
        """True if ``value`` depends on a reduction along the loop."""
        stack = [value]  # no recursion: a graph may be deeper than Python's stack
        while stack:
            top = stack[-1]
            op = self.made.get(top)
            below = op.operands if op is not None and not isinstance(op, s.Source) else ()
            missing = [v for v in below if (self.axis, v) not in self.known]
            if missing and (self.axis, top) not in self.known:
                stack.extend(missing)
                continue
            late = self._closes(op) or any(self.known[self.axis, v] for v in below)
            self.known[self.axis, top] = late
            stack.pop()
        return self.known[self.axis, value]

    def _closes(self, op: Op | None) -> bool:
        """True if results come after the loop: an operand runs in it, they do not."""
        if op is None or not isinstance(op.results[0].type, StreamType):
            return False
        given = [v.type for v in op.operands if isinstance(v.type, StreamType)]
        inside = any(self.axis == a.name for type_ in given for a in type_.loops)
        return inside and self.axis not in [a.name for a in op.results[0].type.loops]

    def early_constant(self, value: Value) -> Value | None:
        """``constant``, for values that do not have to wait for the loop."""
        return None if self.late(value) else self.constant(value)


class LoopAnalysis:
    """``Along`` for any loop, sharing what is known between the ops of one rewrite."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, Value], bool] = {}

    def along(self, made: Made, axis: str) -> Along:
        return Along(made, axis, self.known)


def wait_levels(graph: Graph) -> dict[Value, int]:
    """How many loops over its own axis each value waits for, one after the other."""
    made, loops = graph.producers(), LoopAnalysis()
    level: dict[Value, int] = {}
    for op in graph.body.ops:
        found = max((level.get(v, 0) for v in op.operands), default=0)
        if isinstance(op, s.Repeat) and loops.along(made, op.axis.name).late(op.x):
            found += 1
        level.update(dict.fromkeys(op.results, found))
    return level


def repeated(b: Rewriter, value: Value, like: Value) -> Value:
    """A value per row given to every step of the loop that ``like`` runs in; a number as it is."""
    if not stream_type(value).loops:
        return value
    return b(s.Repeat, value, axis=stream_type(like).loops[-1], hint=value.hint)
