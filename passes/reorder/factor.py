"""Factors that are constant along an axis leave a sum over it.

Casts count as the identity here, as in exact arithmetic; a factor moved over a cast is rounded
later.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import I64
from tilewright.ir.types import Axis, StreamType
from tilewright.passes.reorder.along import (
    LoopAnalysis,
    casts_floats,
    is_float,
    scalar_of,
    stream_type,
)
from tilewright.passes.rewrite import Rewriter, rewrite_graph

Factor = tuple[type[Op], Value]
Constant = Callable[[Value], Value | None]


def move_factor(graph: Graph) -> Graph:
    """sum_j (x_j * c) * y_j -> (sum_j x_j * y_j) * c; the same for a division, and for a sum
    over an
    element's axis; sum_j c -> c * M over M steps. ``c`` is a constant or one value per row."""
    loops = LoopAnalysis()

    def rule(b: Rewriter, op: Op) -> Value | None:
        if isinstance(op, s.Reduce) and op.kind == "sum":
            return _from_sum(b, op, loops)
        return _from_contract(b, op) if isinstance(op, s.Contract) else None

    return rewrite_graph(graph, rule)


def split_factors(b: Rewriter, value: Value, constant: Constant) -> tuple[Value, list[Factor]]:
    """``value`` = rest * factors, looking through products, quotients, signs, casts and choices
    between something and zero."""
    if not is_float(value):  # an integer quotient is rounded, so that it is not linear
        return value, []
    op = b.producer(value)
    if isinstance(op, m.Mul | m.Div):
        return _split_product(b, op, constant)
    inner = _linear_operand(b, value)
    if inner is None:
        return value, []
    at, x = inner
    outer = constant(x) if isinstance(op, m.Select) and b.constant(x) is None else None
    if outer is not None:  # select(c, k, 0) = select(c, 1, 0) * k
        taken: list[Factor] = [(m.Mul, outer)]
        rest, factors = b.const(1.0, scalar_of(x)), taken
    else:
        rest, factors = split_factors(b, x, constant)
    if not factors or op is None:
        return value, []
    operands = [rest if i == at else v for i, v in enumerate(op.operands)]
    return b(type(op), *operands, hint=rest.hint, **op.attrs), factors


def _linear_operand(b: Rewriter, value: Value) -> tuple[int, Value] | None:
    """Position and value of the operand that a map of one variable is linear in."""
    op = b.producer(value)
    if isinstance(op, m.Neg) or casts_floats(b.made_by, value) is not None:
        return 0, op.operands[0] if op else value
    if isinstance(op, m.Select):
        if b.constant(op.rhs) == 0:
            return 1, op.lhs
        if b.constant(op.lhs) == 0:
            return 2, op.rhs
    return None


def _split_product(b: Rewriter, op: m.Binary, constant: Constant) -> tuple[Value, list[Factor]]:
    left, right = op.operands
    outer = constant(right)
    if outer is not None:
        rest, factors = split_factors(b, left, constant)
        return rest, [*factors, (type(op), outer)]
    outer = constant(left) if isinstance(op, m.Mul) else None
    if outer is not None:
        rest, factors = split_factors(b, right, constant)
        return rest, [*factors, (m.Mul, outer)]
    rest, factors = split_factors(b, left, constant)
    other, more = split_factors(b, right, constant) if isinstance(op, m.Mul) else (right, [])
    if not factors and not more:
        return op.results[0], []
    return b(type(op), rest, other, hint=op.results[0].hint), factors + more


def _is_factor(b: Rewriter, value: Value) -> bool:
    """False for numbers that are no factors: inf * (1 - 1) is not inf * 1 - inf * 1, and dividing
    by zero is the same."""
    number = b.constant(value)
    return number is None or (math.isfinite(number) and number != 0)


def apply_factors(b: Rewriter, value: Value, factors: list[Factor], hint: str) -> Value:
    for cls, given in factors:
        same = stream_type(given).dtype == stream_type(value).dtype
        dtype = stream_type(value).dtype
        factor = given if same else b(m.Cast, given, dtype=dtype, hint=given.hint)
        value = b(cls, value, factor, hint=hint)
    return value


def count_of(b: Rewriter, axis: Axis, like: Value) -> Value:
    """The number of steps of a loop in the dtype of ``like``."""
    known = axis.size.constant
    dtype = stream_type(like).dtype
    if known is not None:
        return b.const(float(known), StreamType((), (), dtype), hint="count")
    size = b(m.SizeValue, size=axis.size, type=StreamType((), (), I64), hint="size")
    return b(m.Cast, size, dtype=dtype, hint="count")


def _from_sum(b: Rewriter, op: s.Reduce, loops: LoopAnalysis) -> Value | None:
    along, hint = loops.along(b.made_by, op.axis), op.result.hint
    axis = stream_type(op.x).loops[-1]

    def constant(value: Value) -> Value | None:
        return along.constant(value) if _is_factor(b, value) else None

    rest, factors = split_factors(b, op.x, constant)
    left = along.constant(rest)
    if left is None and factors:
        total = b(s.Reduce, rest, *op.rescale, kind="sum", axis=op.axis, hint=hint)
    elif left is not None and is_float(op.x) and not op.rescale:
        total = b(m.Mul, left, count_of(b, axis, rest), hint=hint)
    else:
        return None
    return apply_factors(b, total, factors, hint)


def _from_contract(b: Rewriter, op: s.Contract) -> Value | None:
    def constant(value: Value) -> Value | None:
        return value if not stream_type(value).element and _is_factor(b, value) else None

    left, first = split_factors(b, op.lhs, constant)
    right, second = split_factors(b, op.rhs, constant)
    if not first and not second:
        return None
    total = b(type(op), left, right, axes=op.axes, hint=op.result.hint)
    return apply_factors(b, total, first + second, op.result.hint)
