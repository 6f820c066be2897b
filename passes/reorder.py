"""Algebra that makes deep channels shallow: two rules on streams, neither of which knows attention.

factor   sum_j (x_j / c) * y_j              ->  (sum_j x_j * y_j) / c           c constant along j
running  sum_j exp(x_j - max_i x_i) * y_j   ->  a sum rescaled whenever the running maximum grows:
         with r_j = max(x_0 … x_j):  state <- state * exp(r_{j-1} - r_j) + exp(x_j - r_j) * y_j
         since exp(x_j - R) = exp(x_j - r_j) * exp(r_j - r_{j+1}) * … * exp(r_{last} - R), and the
         sum is linear.

Casts count as the identity here, as in exact arithmetic; a factor moved over a cast is rounded
later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.canonicalise import canonicalise_graph
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph


@dataclass(frozen=True)
class Rule:
    """A named rewrite of a stream graph with its algebra (the docstring of ``apply``)."""

    name: str
    apply: Callable[[Graph], Graph]


def _scalar_like(value: Value) -> StreamType:
    assert isinstance(value.type, StreamType)
    return StreamType((), (), value.type.dtype)


def move_factor(graph: Graph) -> Graph:
    """sum_j (x_j * c) * y_j -> (sum_j x_j * y_j) * c; the same for a division, and for a sum
    over an
    element's axis. ``c`` is a constant or one value per row."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        if isinstance(op, s.Reduce) and op.kind == "sum" and not op.rescale:
            return _from_sum(b, op)
        return _from_contract(b, op) if isinstance(op, s.Contract) else None

    return rewrite_graph(graph, rule)


Factor = tuple[type[Op], Value]


def _split_factors(b: Rewriter, value: Value, constant: Callable[[Value], Value | None]) -> Any:
    """``value`` = rest * factors, looking through products, quotients and casts."""
    op = b.producer(value)
    if isinstance(op, m.Cast) and _is_float(op.x) and _is_float(value):
        rest, factors = _split_factors(b, op.x, constant)
        if not factors:
            return value, []
        return b(m.Cast, rest, dtype=op.dtype, hint=rest.hint), factors
    # an integer quotient is rounded, so that it is not linear
    if not isinstance(op, m.Mul | m.Div) or not _is_float(value):
        return value, []
    left, right = op.lhs, op.rhs
    outer = constant(right)
    if outer is not None:
        rest, factors = _split_factors(b, left, constant)
        return rest, [*factors, (type(op), outer)]
    outer = constant(left) if isinstance(op, m.Mul) else None
    if outer is not None:
        rest, factors = _split_factors(b, right, constant)
        return rest, [*factors, (m.Mul, outer)]
    rest, factors = _split_factors(b, left, constant)
    other, more = _split_factors(b, right, constant) if isinstance(op, m.Mul) else (right, [])
    if not factors and not more:
        return value, []
    return b(type(op), rest, other, hint=value.hint), factors + more


def _is_float(value: Value) -> bool:
    assert isinstance(value.type, StreamType)
    return value.type.dtype.is_float


def _apply_factors(b: Rewriter, value: Value, factors: list[Factor], hint: str) -> Value:
    for cls, given in factors:
        assert isinstance(value.type, StreamType) and isinstance(given.type, StreamType)
        same = given.type.dtype == value.type.dtype
        factor = given if same else b(m.Cast, given, dtype=value.type.dtype, hint=given.hint)
        value = b(cls, value, factor, hint=hint)
    return value


def _from_sum(b: Rewriter, op: Any) -> Value | None:
    def constant(value: Value) -> Value | None:
        if b.constant(value) is not None:
            return value
        made = b.producer(value, s.Repeat)
        scalar = made is not None and not getattr(value.type, "element", ())
        return made.operands[0] if made is not None and scalar else None

    rest, factors = _split_factors(b, op.x, constant)
    if not factors:
        return None
    total = b(s.Reduce, rest, kind="sum", axis=op.axis, hint=op.result.hint)
    return _apply_factors(b, total, factors, op.result.hint)


def _from_contract(b: Rewriter, op: Any) -> Value | None:
    def constant(value: Value) -> Value | None:
        return value if not getattr(value.type, "element", ()) else None

    left, first = _split_factors(b, op.lhs, constant)
    right, second = _split_factors(b, op.rhs, constant)
    if not first and not second:
        return None
    total = b(s.Contract, left, right, axes=op.axes, hint=op.result.hint)
    return _apply_factors(b, total, first + second, op.result.hint)


@dataclass(frozen=True)
class _Exponential:
    """exp(x - f(max x)): the op, its x, and the exponential's place in the graph."""

    op: Op
    x: Value


def running_maximum(graph: Graph) -> Graph:
    """sum_j exp(x_j - max x) * y_j -> a rescaled sum over a running maximum (see the module)."""
    found = _find_exponentials(graph)
    if not found:
        return graph
    replaced: dict[Value, tuple[Value, Value]] = {}

    def rule(b: Rewriter, op: Op) -> Value | None:
        for exponential in found:
            if b.original is exponential.op:
                return _running(b, op, exponential, replaced)
        if isinstance(op, s.Reduce) and op.kind == "sum" and not op.rescale:
            delta = _delta_below(b, op.x, replaced)
            if delta is not None:
                out = b(s.Reduce, op.x, delta, kind="sum", axis=op.axis, hint=op.result.hint)
                return out
        return None

    return rewrite_graph(graph, rule)


def _find_exponentials(graph: Graph) -> list[_Exponential]:
    made, uses = graph.producers(), graph.uses()
    found = []
    for op in graph.body.ops:
        shifted = made.get(op.operands[0]) if isinstance(op, m.Exp) else None
        if not isinstance(shifted, m.Sub):
            continue
        repeat = made.get(shifted.rhs)
        if isinstance(repeat, s.Repeat) and _is_maximum_of(made, repeat.x, shifted.lhs):
            axis = repeat.axis
            below = _downstream(uses, op.result)
            if _only_sums(uses, op.result, axis, graph, below):
                found.append(_Exponential(op, shifted.lhs))
    return found


def _is_maximum_of(made: dict[Value, Op], value: Value, x: Value) -> bool:
    """True for max x over the innermost loop, and for select(max x == -inf, 0, max x)."""
    op = made.get(value)
    if isinstance(op, m.Select) and _guards(made, op):
        op = made.get(op.rhs)
    return isinstance(op, s.Reduce) and op.kind == "max" and op.x is x


def _guards(made: dict[Value, Op], choice: m.Select) -> bool:
    """True for select(x == -inf, 0, x)."""
    test, zero = made.get(choice.condition), made.get(choice.lhs)
    if not isinstance(test, m.Compare) or test.relation != "eq" or test.lhs is not choice.rhs:
        return False
    bound = made.get(test.rhs)
    lowest = isinstance(bound, m.Const) and bound.value == -math.inf
    return lowest and isinstance(zero, m.Const) and zero.value == 0


def _downstream(uses: dict[Value, list[Op]], value: Value) -> set[Value]:
    """``value`` and everything computed from it."""
    found, stack = {value}, [value]
    while stack:
        for op in uses.get(stack.pop(), []):
            stack.extend(r for r in op.results if r not in found)
            found.update(op.results)
    return found


def _only_sums(
    uses: dict[Value, list[Op]], value: Value, axis: Axis, graph: Graph, below: set[Value]
) -> bool:
    """True if every path from ``value`` is linear and ends in a sum over ``axis``."""
    if value in graph.results:
        return False
    for op in uses.get(value, []):
        if isinstance(op, s.Reduce):
            if op.kind != "sum" or op.axis != axis.name or op.rescale:
                return False
            continue
        linear = isinstance(op, m.Mul | m.Cast) or (isinstance(op, m.Div) and op.rhs is not value)
        squared = sum(v in below for v in op.operands) > 1
        if not linear or squared or not _only_sums(uses, op.result, axis, graph, below):
            return False
    return bool(uses.get(value))


def _running(
    b: Rewriter, op: Op, found: _Exponential, replaced: dict[Value, tuple[Value, Value]]
) -> Value:
    shifted = b.producer(op.operands[0], m.Sub)
    assert shifted is not None
    x = shifted.operands[0]
    type_ = x.type
    assert isinstance(type_, StreamType)
    scalar = _scalar_like(x)
    scan = b.add(s.Scan(x, kind="max", axis=type_.loops[-1].name, loc=op.loc))
    now, before = scan.results
    now.hint, before.hint = "running", "before"
    # exp(-inf - -inf) would be NaN before the first finite element: any finite reference does
    empty = b(m.Compare, now, b.const(-math.inf, scalar), relation="eq", hint="empty")
    reference = b(m.Select, empty, b.const(0.0, scalar), now, hint="reference")
    delta = b(m.Exp, b(m.Sub, before, reference, hint="grown"), hint="rescale")
    e = b(m.Exp, b(m.Sub, x, reference, hint="shifted"), hint=op.result.hint)
    replaced[e] = (e, delta)
    return e


def _delta_below(
    b: Rewriter, value: Value, replaced: dict[Value, tuple[Value, Value]]
) -> Value | None:
    """The rescale factor if ``value`` is linear in a rewritten exponential."""
    if value in replaced:
        return replaced[value][1]
    op = b.producer(value)
    if isinstance(op, m.Mul | m.Cast | m.Div):
        for operand in op.operands:
            found = _delta_below(b, operand, replaced)
            if found is not None:
                return found
    return None


RULES = (Rule("factor", move_factor), Rule("running", running_maximum))


def reorder_graph(graph: Graph) -> Graph:
    """All rules once, each followed by canonicalisation."""
    for rule in RULES:
        graph = canonicalise_graph(rule.apply(graph))
    return graph


def reorder(module: Module) -> Module:
    """Applies the reorder rules to every stream graph."""
    return for_each_graph(module, reorder_graph, "stream")
