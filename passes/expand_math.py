"""Functions as range reduction plus polynomial, so that all back ends compute the same numbers.

    exp x   -> exp2(x * log2 e)
    exp2 x  -> 2**floor(x) * p(x - floor(x)), p of degree 6 on [0, 1]   (relative error 4e-9)
    tanh x  -> 1 - 2 / (exp(2x) + 1)
    erf x   -> sign x * (1 - exp2(-p(|x|))), p of degree 8 on [0, 4]    (absolute error 2e-8)

Coefficients: minimax on the interval, found by Remez exchange in extended precision; of erf, whose
p is -log2(1 - erf |x|), by least squares whose weights grow where 1 - exp2(-p) is far off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.types import RegisterType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph

EXP2 = (
    1.0,
    0.6931469838406203,
    0.24022983627393932,
    0.05548334198469722,
    0.009678840995823189,
    0.0012439687830286198,
    0.00021702255449076974,
)

ERF = (  # times x, x^2, …: p(0) = 0
    1.6279085935478044,
    0.9184163860678756,
    0.14848165025582433,
    -0.028253760226622415,
    0.0007747217531333886,
    0.0014893846943055042,
    -0.0004454900024904196,
    4.535645518909703e-05,
)
ERF_ONE = 4.0  # from here on 1 - erf x is below f32's last place


def _rank(value: Value) -> int:
    assert isinstance(value.type, RegisterType)
    return value.type.layout.rank


def _number(b: Rewriter, like: Value, number: float) -> Value:
    return b.const(number, RegisterType(F32, Layout(_rank(like))))


def exp2_parts(b: Rewriter, op: Any) -> Value:
    """exp2 of f32: NaN passes, -inf gives 0, +inf and overflow give inf."""
    x = op.operands[0]
    f = b(m.Fraction, x, hint="fraction")
    acc = _number(b, x, EXP2[-1])
    for coefficient in reversed(EXP2[:-1]):
        acc = b(m.Fma, acc, f, _number(b, x, coefficient), hint="poly")
    return b(m.Scale2, acc, x, hint=op.result.hint)


def exp_parts(b: Rewriter, op: Any) -> Value:
    """exp x -> exp2(x * log2 e)"""
    x = op.operands[0]
    scaled = b(m.Mul, x, _number(b, x, math.log2(math.e)), hint="scaled")
    return exp2_parts(b, b.add(m.Exp2(scaled, hints=[op.result.hint])))


def tanh_parts(b: Rewriter, op: Any) -> Value:
    """tanh x -> 1 - 2 / (exp(2x) + 1)"""
    x = op.operands[0]
    scaled = b(m.Mul, x, _number(b, x, 2 * math.log2(math.e)), hint="scaled")
    e = exp2_parts(b, b.add(m.Exp2(scaled, hints=["e"])))
    below = b(m.Add, e, _number(b, x, 1.0))
    return b(m.Sub, _number(b, x, 1.0), b(m.Div, _number(b, x, 2.0), below), hint=op.result.hint)


def erf_parts(b: Rewriter, op: Any) -> Value:
    """erf x -> sign x * (1 - exp2(-p(|x|)))"""
    x = op.operands[0]
    size = b(m.Min, b(m.Abs, x, hint="size"), _number(b, x, ERF_ONE), hint="size")
    acc = _number(b, x, ERF[-1])
    for coefficient in reversed(ERF[:-1]):
        acc = b(m.Fma, acc, size, _number(b, x, coefficient), hint="poly")
    scaled = b(m.Neg, b(m.Mul, acc, size), hint="scaled")
    left = exp2_parts(b, b.add(m.Exp2(scaled, hints=["left"])))
    found = b(m.Sub, _number(b, x, 1.0), left, hint="found")
    below = b(m.Compare, x, _number(b, x, 0.0), relation="lt")
    return b(m.Select, below, b(m.Neg, found), found, hint=op.result.hint)


def sigmoid_parts(b: Rewriter, op: Any) -> Value:
    """sigmoid x -> 1 / (1 + exp(-x))"""
    x = op.operands[0]
    scaled = b(m.Mul, x, _number(b, x, -math.log2(math.e)), hint="scaled")
    e = exp2_parts(b, b.add(m.Exp2(scaled, hints=["e"])))
    one = _number(b, x, 1.0)
    return b(m.Div, one, b(m.Add, e, one), hint=op.result.hint)


def rsqrt_parts(b: Rewriter, op: Any) -> Value:
    """rsqrt x -> 1 / sqrt(x)"""
    x = op.operands[0]
    return b(m.Div, _number(b, x, 1.0), b(m.Sqrt, x), hint=op.result.hint)


PARTS: dict[type[Op], Callable[[Rewriter, Any], Value]] = {
    m.Exp2: exp2_parts,
    m.Exp: exp_parts,
    m.Tanh: tanh_parts,
    m.Erf: erf_parts,
    m.Sigmoid: sigmoid_parts,
    m.Rsqrt: rsqrt_parts,
}


def expand_math_graph(graph: Graph) -> Graph:
    """Every function on f32 register tiles as arithmetic."""

    def rule(b: Rewriter, op: Op) -> Value | None:
        parts = PARTS.get(type(op))
        if parts is None or getattr(op.result.type, "dtype", None) != F32:
            return None
        return parts(b, op)

    return rewrite_graph(graph, rule)


def expand_math(module: Module) -> Module:
    """Expands functions in tile programs."""
    return for_each_graph(module, expand_math_graph, "tile")
