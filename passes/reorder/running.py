"""Exponentials of differences to a maximum: rescaled sums instead of a second pass.

With r_j = max(x_0 … x_j) the state of a sum of degree 1 in the exponentials is

    state <- state * exp(r_{j-1} - r_j) + exp(x_j - r_j) * y_j

since exp(x_j - R) = exp(x_j - r_j) * exp(r_j - r_{j+1}) * … * exp(r_last - R), and the sum is
linear. A sum of degree k in them is multiplied by the k-th power, one over two families of
exponentials by both of their factors: any number of consumers share one running maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.passes.reorder.additive import split_late
from tilewright.passes.reorder.along import (
    LoopAnalysis,
    Made,
    casts_floats,
    is_float,
    repeated,
    scalar_of,
    stream_type,
    wait_levels,
)
from tilewright.passes.reorder.linear import Degree, find_linear, rebuild_sums
from tilewright.passes.rewrite import Rewriter


@dataclass(frozen=True)
class Shifted:
    """exp(scale(x - max x)): ``difference`` is x - max x, ``scaling`` the maps above it,
    outermost first. Positive constant factors keep exp(scale(-inf)) zero; others may not.
    ``finite``: the maximum counts as 0 where it is +inf, too, not only where it is -inf."""

    difference: m.Binary
    scaling: tuple[Op, ...]
    positive: bool
    finite: bool


def is_exponential(op: Op | None) -> bool:
    return isinstance(op, m.Exp | m.Exp2) and is_float(op.results[0])


def shifted_by_maximum(made: Made, op: Op, loops: LoopAnalysis) -> Shifted | None:
    """The form of an exponential's argument if it is a scaled difference to its own maximum. None
    outside of loops, and for elements: a maximum of their own for each number would rescale each by
    another factor, and a sum whose term folds or contracts the element has no factor then."""
    type_ = stream_type(op.results[0])
    if type_.element or not type_.loops:
        return None
    scaling: list[Op] = []
    positive = True
    value = op.operands[0]
    while True:
        below = made.get(value)
        if isinstance(below, m.Sub):
            found = _is_maximum_of(made, below.rhs, below.lhs)
            if found is None:
                return None
            return Shifted(below, tuple(scaling), positive, finite=found == math.inf)
        if casts_floats(made, value) is None:
            if not isinstance(below, m.Mul | m.Div):
                return None
            along = loops.along(made, stream_type(value).loops[-1].name)
            if along.early_constant(below.rhs) is None:
                return None
            factor = made.get(below.rhs)
            positive &= isinstance(factor, m.Const) and 0 < factor.value < math.inf
        assert below is not None
        scaling.append(below)
        value = below.operands[0]


def _is_maximum_of(made: Made, value: Value, x: Value) -> float | None:
    """Up to which infinity the value is max x over the innermost loop, and 0 there: -inf for max x
    itself and for select(max x == -inf, 0, max x), inf for select(abs(max x) == inf, 0, max x);
    None for others."""
    repeat = made.get(value)
    if not isinstance(repeat, s.Repeat):
        return None
    op, kept = made.get(repeat.x), -math.inf
    if isinstance(op, m.Select):
        guarded = _guarded(made, op)
        if guarded is None:
            return None
        op, kept = made.get(op.rhs), guarded
    return kept if isinstance(op, s.Reduce) and op.kind == "max" and op.x is x else None


def _guarded(made: Made, choice: m.Select) -> float | None:
    """-inf for select(x == -inf, 0, x), inf for select(abs x == inf, 0, x), None for others."""
    test, zero = made.get(choice.condition), made.get(choice.lhs)
    if not isinstance(test, m.Compare) or test.relation != "eq":
        return None
    bound, tested = made.get(test.rhs), made.get(test.lhs)
    if not isinstance(bound, m.Const) or not isinstance(zero, m.Const) or zero.value != 0:
        return None
    if test.lhs is choice.rhs and bound.value == -math.inf:
        return -math.inf
    both = isinstance(tested, m.Abs) and tested.operands[0] is choice.rhs
    return math.inf if both and bound.value == math.inf else None


def running_maximum(graph: Graph) -> Graph:
    """sum_j exp(x_j - max x) * y_j -> a rescaled sum over a running maximum (see the module)."""
    made, loops = graph.producers(), LoopAnalysis()
    forms: dict[Value, Shifted] = {}
    for op in graph.body.ops:
        form = shifted_by_maximum(made, op, loops) if is_exponential(op) else None
        if form is not None:
            forms[op.results[0]] = form
    waits = wait_levels(graph)
    linear = find_linear(graph, {e: waits[f.difference.lhs] for e, f in forms.items()})
    rescale: dict[Value, Value] = {}  # of an exponential in the old graph

    def exponential(b: Rewriter, op: Op, old: Value) -> Value:
        e, rescale[old] = _running(b, op, forms[old])
        return e

    def total(b: Rewriter, old: s.Reduce, x: Value) -> Value:
        factor = _power(b, linear.sums[old], rescale)
        return b(s.Reduce, x, factor, kind="sum", axis=old.axis, hint=old.result.hint)

    return rebuild_sums(graph, linear, exponential, total)


def _power(b: Rewriter, degree: Degree, rescale: dict[Value, Value]) -> Value:
    """The product of the exponentials' factors, each as often as its degree says."""
    factors = [rescale[e] for e, times in degree.items() for _ in range(times)]
    product = factors[0]
    for factor in factors[1:]:
        product = b(m.Mul, product, factor, hint="rescale")
    return product


def _running(b: Rewriter, op: Op, form: Shifted) -> tuple[Value, Value]:
    """The exponential over the running maximum, and what earlier sums are multiplied by."""
    scaling, difference = _argument(b, op, len(form.scaling))
    x = difference.operands[0]
    scalar = scalar_of(x)
    scan = b.add(s.Scan(x, kind="max", axis=stream_type(x).loops[-1].name, loc=op.loc))
    now, before = scan.results
    now.hint, before.hint = "running", "before"
    # exp(-inf - -inf) would be NaN before the first finite element: any finite reference does
    lowest = b.const(-math.inf, scalar)
    if form.finite:  # exp(inf - inf) would be, too, where the program says exp(inf - 0)
        size = b(m.Abs, now, hint="size")
        empty = b(m.Compare, size, b.const(math.inf, scalar), relation="eq", hint="empty")
    else:
        empty = b(m.Compare, now, lowest, relation="eq", hint="empty")
    reference = b(m.Select, empty, b.const(0.0, scalar), now, hint="reference")
    grown = _scaled(b, b(m.Sub, before, reference, hint="grown"), scaling)
    delta = b(type(op), grown, hint="rescale")
    if not form.positive:  # -inf times a factor need not be -inf; there is nothing to rescale yet
        none = b(m.Compare, before, lowest, relation="eq", hint="none")
        delta = b(m.Select, none, b.const(0.0, scalar_of(delta)), delta, hint="rescale")
    shifted = _scaled(b, b(m.Sub, x, reference, hint="shifted"), scaling)
    return b(type(op), shifted, hint=op.results[0].hint), delta


def _argument(b: Rewriter, op: Op, count: int) -> tuple[list[Op], Op]:
    """The ``count`` maps above the difference, innermost first, and the difference."""
    scaling: list[Op] = []
    below = b.made_by[op.operands[0]]
    for _ in range(count):
        scaling.append(below)
        below = b.made_by[below.operands[0]]
    return scaling[::-1], below


def _scaled(b: Rewriter, value: Value, scaling: list[Op]) -> Value:
    for op in scaling:
        value = b(type(op), value, *op.operands[1:], hint=value.hint, **op.attrs)
    return value


def introduce_maximum(graph: Graph) -> Graph:
    """exp(x_j + c) -> exp(x_j - max x) * exp(max x + c); c waits for the loop, as in
    exp(x - log sum exp x). A row of -inf counts as one whose maximum is 0."""
    made, loops = graph.producers(), LoopAnalysis()
    candidates = [
        op.results[0]
        for op in graph.body.ops
        if is_exponential(op) and _waits(made, op, loops)
        if shifted_by_maximum(made, op, loops) is None
    ]
    fresh = LoopAnalysis()

    def exponential(b: Rewriter, op: Op, old: Value) -> Value:
        return _with_maximum(b, op, fresh) or op.results[0]

    def total(b: Rewriter, old: s.Reduce, x: Value) -> Value:
        return b(s.Reduce, x, kind="sum", axis=old.axis, hint=old.result.hint)

    return rebuild_sums(graph, find_linear(graph, dict.fromkeys(candidates, 0)), exponential, total)


def _waits(made: Made, op: Op, loops: LoopAnalysis) -> bool:
    """True if the argument is a scalar that depends on a reduction along its own loop."""
    type_ = stream_type(op.results[0])
    if not type_.loops or type_.element:
        return False
    return loops.along(made, type_.loops[-1].name).late(op.operands[0])


def _with_maximum(b: Rewriter, op: Op, loops: LoopAnalysis) -> Value | None:
    axis, hint = stream_type(op.results[0]).loops[-1].name, op.results[0].hint
    along = loops.along(b.made_by, axis)
    parts = split_late(b, along, op.operands[0])
    if parts is None or parts.early is None or parts.late is None:
        return None
    x, scalar = parts.early, scalar_of(parts.early)
    top = b(s.Reduce, x, kind="max", axis=axis, hint="max")
    empty = b(m.Compare, top, b.const(-math.inf, scalar), relation="eq", hint="empty")
    top = b(m.Select, empty, b.const(0.0, scalar), top, hint="max")
    e = b(type(op), b(m.Sub, x, repeated(b, top, x), hint="shifted"), hint=hint)
    factor = b(type(op), b(m.Add, top, parts.late, hint="offset"), hint="factor")
    return b(m.Mul, e, repeated(b, factor, x), hint=hint)
