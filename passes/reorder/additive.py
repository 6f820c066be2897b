"""Summands that are constant along a loop: taken out of differences, and out of sums.

``split_late`` writes a value as (what comes with the elements) + (what waits for the loop);
``distribute`` turns the sum of such a difference into a difference of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.reorder.along import (
    Along,
    LoopAnalysis,
    casts_floats,
    is_float,
    repeated,
    stream_type,
)
from tilewright.passes.rewrite import Rewriter, rewrite_graph

MOST_TERMS = 8  # a sum is not written as more sums than this


@dataclass(frozen=True)
class Parts:
    """``early`` runs in the loop and does not wait for it; ``late`` is one value per row."""

    early: Value | None = None
    late: Value | None = None


def split_late(b: Rewriter, along: Along, value: Value) -> Parts | None:
    """value = early + late, through sums, signs, casts, early factors and masks by -inf; None if it
    is nothing of the kind."""
    if not along.late(value):
        return Parts(early=value)
    once = along.constant(value)
    if once is not None:
        return Parts(late=once)
    op = b.producer(value)
    if isinstance(op, m.Add | m.Sub):
        return _split_sum(b, along, op)
    if isinstance(op, m.Neg) or casts_floats(b.made_by, value) is not None:
        return _split_map(b, along, op, ()) if op is not None else None
    if isinstance(op, m.Mul | m.Div):
        factor = along.early_constant(op.rhs)
        return _split_map(b, along, op, (factor,)) if factor is not None else None
    if isinstance(op, m.Select) and b.constant(op.rhs) == -math.inf:
        below = split_late(b, along, op.lhs)
        if below is None or below.early is None or along.late(op.condition):
            return None
        masked = b(m.Select, op.condition, below.early, op.rhs, hint=below.early.hint)
        return Parts(masked, below.late)
    return None


def _split_sum(b: Rewriter, along: Along, op: m.Binary) -> Parts | None:
    left, right = split_late(b, along, op.lhs), split_late(b, along, op.rhs)
    if left is None or right is None:
        return None
    early = _combined(b, type(op), left.early, right.early)
    return Parts(early, _combined(b, type(op), left.late, right.late))


def _combined(b: Rewriter, cls: type[Op], x: Value | None, y: Value | None) -> Value | None:
    if x is None or y is None:
        return b(m.Neg, y, hint=y.hint) if y is not None and cls is m.Sub else (x or y)
    return b(cls, x, y, hint=x.hint)


def _split_map(b: Rewriter, along: Along, op: Op, rest: tuple[Value, ...]) -> Parts | None:
    """A linear map of both parts; ``rest`` are its other operands, once per row."""
    below = split_late(b, along, op.operands[0])
    if below is None:
        return None
    early, late = below.early, below.late
    if early is not None:
        early = b(type(op), early, *op.operands[1:], hint=early.hint, **op.attrs)
    if late is not None:
        late = b(type(op), late, *rest, hint=late.hint, **op.attrs)
    return Parts(early, late)


def distribute(graph: Graph) -> Graph:
    """sum_j x_j * (y_j + c) -> sum_j x_j * y_j + sum_j x_j * c; c waits for the loop, and is a
    factor of its own sum then. Rounding errors are relative to the terms, not to their sum:
    products of two such differences are left to the rule for moments."""
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        if not isinstance(op, s.Reduce) or op.kind != "sum" or op.rescale:
            return None
        along = loops.along(b.made_by, op.axis)
        if not is_float(op.x) or not along.late(op.x):
            return None
        found = _Terms(b, along).of(op.x)
        if len(found) < 2 or not all(_settled(b, along, x) for x in found):
            return None
        total: Value | None = None
        for term in found:
            running = _in_loops(b, term, op.x)
            part = b(s.Reduce, running, kind="sum", axis=op.axis, hint=op.result.hint)
            total = part if total is None else b(m.Add, total, part, hint=op.result.hint)
        return total

    return rewrite_graph(graph, rule)


def _in_loops(b: Rewriter, term: Value, like: Value) -> Value:
    """A term given to every step of the loops of ``like``: a number alone runs in none."""
    for axis in stream_type(like).loops[len(stream_type(term).loops) :]:
        term = b(s.Repeat, term, axis=axis, hint=term.hint)
    return term


class _Terms:
    """Writes a value as a sum of terms, multiplied out where a summand waits for the loop."""

    def __init__(self, b: Rewriter, along: Along) -> None:
        self.b, self.along = b, along

    def of(self, value: Value) -> list[Value]:
        """The terms; the value itself if there is nothing to multiply out."""
        b, op = self.b, self.b.producer(value)
        if op is None or not self.along.late(value) or self.along.constant(value) is not None:
            return [value]
        if isinstance(op, m.Add):
            return self.of(op.lhs) + self.of(op.rhs)
        if isinstance(op, m.Sub):
            return self.of(op.lhs) + [self._negated(x) for x in self.of(op.rhs)]
        if isinstance(op, m.Mul):
            left, right = self.of(op.lhs), self.of(op.rhs)
            if len(left) > 1 and len(right) > 1:
                return [value]
            pairs = [(x, y) for x in left for y in right]
            return (
                [b(m.Mul, x, y, hint=value.hint) for x, y in pairs] if len(pairs) > 1 else [value]
            )
        if isinstance(op, m.Select) and b.constant(op.rhs) == 0:
            return self._mapped(value, op, 1)
        linear = isinstance(op, m.Div | m.Neg) or casts_floats(b.made_by, value) is not None
        return self._mapped(value, op, 0) if linear else [value]

    def _mapped(self, value: Value, op: Op, at: int) -> list[Value]:
        below = self.of(op.operands[at])
        if not 1 < len(below) <= MOST_TERMS:
            return [value]
        out = []
        for term in below:
            given = [term if i == at else v for i, v in enumerate(op.operands)]
            out.append(self.b(type(op), *given, hint=value.hint, **op.attrs))
        return out

    def _negated(self, value: Value) -> Value:
        once = self.along.constant(value)
        if once is None or not stream_type(value).loops:
            return self.b(m.Neg, value, hint=value.hint)
        return repeated(self.b, self.b(m.Neg, once, hint=value.hint), value)


def _settled(b: Rewriter, along: Along, term: Value) -> bool:
    """True if nothing in a product waits for the loop but constants, and exponentials whose
    argument can be split."""
    if not along.late(term) or along.constant(term) is not None:
        return True
    op = b.producer(term)
    if isinstance(op, m.Mul | m.Div):
        return all(_settled(b, along, v) for v in op.operands)
    if isinstance(op, m.Neg) or casts_floats(b.made_by, term) is not None:
        return op is not None and _settled(b, along, op.operands[0])
    if isinstance(op, m.Select) and b.constant(op.rhs) == 0:
        return not along.late(op.condition) and _settled(b, along, op.lhs)
    if isinstance(op, m.Exp | m.Exp2):
        return split_late(b, along, op.operands[0]) is not None
    return False
