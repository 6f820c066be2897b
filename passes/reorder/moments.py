"""Centred moments in one pass, by Welford's update.

With the running means a_j of x_0 … x_j and b_j of y_0 … y_j, and A and B those of the whole row,

    sum_j (x_j - A) * (y_j - B) = sum_j (x_j - a_{j-1}) * (y_j - b_j)

(Welford 1962; for a block of steps between two means it is Chan's update, so that the means may be
taken once a block). Any other constants c, d than the means add M * (A - c) * (B - d). Nothing is
subtracted that is larger than a deviation from a mean: the relative error of a variance is that of
summing squares, about 1e-6 in f32, and grows by (rounding of the mean / deviation)**2 only.
"""

from __future__ import annotations

import math

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.types import StreamType
from tilewright.passes.reorder.along import (
    Along,
    LoopAnalysis,
    is_float,
    scalar_of,
    stream_type,
)
from tilewright.passes.reorder.factor import apply_factors, count_of, split_factors
from tilewright.passes.rewrite import Rewriter, rewrite_graph

Deviation = tuple[Value, Value]  # x, and the constant subtracted from it, once per row


def one_pass_moments(graph: Graph) -> Graph:
    """sum_j (x_j - c) * (y_j - d) -> Welford's update + M * (mean x - c) * (mean y - d); c and d
    wait for the loop, such as means themselves (see the module)."""
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        plain = isinstance(op, s.Reduce) and op.kind == "sum" and not op.rescale
        if not plain or not is_float(op.operands[0]) or stream_type(op.results[0]).element:
            return None
        assert isinstance(op, s.Reduce)
        along = loops.along(b.made_by, op.axis)
        rest, factors = split_factors(b, op.x, along.constant)
        pair = _deviations(b, along, rest)
        if pair is None:
            return None
        return apply_factors(b, _moment(b, op, *pair), factors, op.result.hint)

    return rewrite_graph(graph, rule)


def _deviations(b: Rewriter, along: Along, value: Value) -> tuple[Deviation, Deviation] | None:
    product = b.producer(value, m.Mul)
    if not isinstance(product, m.Mul):
        return None
    left, right = _deviation(b, along, product.lhs), _deviation(b, along, product.rhs)
    return (left, right) if left is not None and right is not None else None


def _deviation(b: Rewriter, along: Along, value: Value) -> Deviation | None:
    op = b.producer(value, m.Sub)
    if not isinstance(op, m.Sub):
        return None
    once = along.constant(op.rhs)
    late = once is not None and along.late(op.rhs) and not along.late(op.lhs)
    return (op.lhs, once) if late and once is not None else None


def _moment(b: Rewriter, op: s.Reduce, left: Deviation, right: Deviation) -> Value:
    counts = _Counts(b, left[0])
    x, y = left[0], right[0]
    before, _ = counts.means(x)
    _, now = counts.means(y)
    first = b(m.Sub, x, before, hint="deviation")
    term = b(m.Mul, first, b(m.Sub, y, now, hint="deviation"), hint="term")
    moment = b(s.Reduce, term, kind="sum", axis=op.axis, hint=op.result.hint)
    count = count_of(b, stream_type(x).loops[-1], x)
    offsets = []
    for value, constant in (left, right):
        total = b(s.Reduce, value, kind="sum", axis=op.axis, hint="sum")
        mean = b(m.Div, total, count, hint="mean")
        offsets.append(b(m.Sub, mean, constant, hint="offset"))
    both = b(m.Mul, b(m.Mul, *offsets, hint="offset"), count, hint="offset")
    return b(m.Add, moment, both, hint=op.result.hint)


class _Counts:
    """How many steps of a loop there have been, and means over them."""

    def __init__(self, b: Rewriter, like: Value) -> None:
        self.b = b
        loops = stream_type(like).loops
        self.axis, self.scalar = loops[-1].name, scalar_of(like)
        at = b(s.Index, axis=self.axis, type=StreamType(loops, (), I64), hint=f"{self.axis}_at")
        steps = b(m.Cast, at, dtype=self.scalar.dtype, hint="step")
        steps = b(m.Add, steps, b.const(1.0, self.scalar), hint="step")
        # a maximum is the last of rising numbers, whole blocks at a time, too
        scan = b.add(s.Scan(steps, kind="max", axis=self.axis))
        self.now, self.before = scan.results
        self.now.hint, self.before.hint = "steps", "steps_before"

    def means(self, x: Value) -> tuple[Value, Value]:
        """The mean before each step (of the first step: its own), and up to it."""
        b = self.b
        scan = b.add(s.Scan(x, kind="sum", axis=self.axis, blockwise=True))
        now, before = scan.results
        now.hint, before.hint = f"{x.hint}_sum", f"{x.hint}_before"
        mean = b(m.Div, now, self.now, hint="mean")
        earlier = b(m.Div, before, self.before, hint="mean_before")
        none = b.const(-math.inf, self.scalar)
        first = b(m.Compare, self.before, none, relation="eq", hint="first")
        return b(m.Select, first, mean, earlier, hint="mean_before"), mean
