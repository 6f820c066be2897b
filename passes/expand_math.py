"""Functions as range reduction plus polynomial, so that all back ends compute the same numbers.

    exp2 x  -> 2**floor(x) * p(x - floor(x)), p of degree 6 on [0, 1]   (relative error 4e-9)
    exp x   -> exp2(t) of the rounded t = x * log2 e, with what t lost added to its fraction;
               without, where what is far from 0 hardly counts: of a difference, which makes a
               weight beside a greatest one, which is 1, and in 1 / (1 + exp x)
                                                         (its relative error is |x| * 1e-7)
    tanh x  -> x p(x^2) / q(x^2) on [-9, 9], both of degree 4           (relative error 3e-8)
    erf x   -> x p(x^2) / q(x^2) on [-3.9, 3.9], both of degree 5       (relative error 3e-8)
    sigmoid x -> 1 / (1 + exp2(-x * log2 e))
    log x, log2 x -> log_parts.py

Coefficients: minimax on the interval, found by Remez exchange in extended precision; of tanh and
erf by least squares with weights of the error before (Lawson) and of the denominator before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Module, Op, Value
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.types import RegisterType
from tilewright.passes.log_parts import log2_parts, log_parts
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

LOG2E = math.log2(math.e)
LOG2E_HIGH = float(np.float32(LOG2E))
LOST = 2.0**-16  # more than exponents from -150 to 128 lose

# Numerator and denominator of f(x) / x in powers of x^2, where |f| is 1 to f32's last place, and
# the denominator's first coefficient is 1.
TANH = (
    (
        1.0,
        0.13382678654109362,
        0.003497447437708009,
        2.06356555715191e-05,
        1.3384066669558566e-08,
    ),
    (
        1.0,
        0.4671599990478987,
        0.0258843219846861,
        0.0003288500647800774,
        7.790155734442937e-07,
    ),
)
TANH_ONE = 9.02
ERF = (
    (
        1.1283791670955126,
        0.18987794579104536,
        0.052679087181145064,
        0.003742768785998981,
        0.00028433723331864426,
        2.0538912100209095e-06,
    ),
    (
        1.0,
        0.5016078909924947,
        0.11389071797717963,
        0.014923864017344237,
        0.001156914086939903,
        3.8102252264163276e-05,
    ),
)
ERF_ONE = 3.92


def _rank(value: Value) -> int:
    assert isinstance(value.type, RegisterType)
    return value.type.layout.rank


def _number(b: Rewriter, like: Value, number: float) -> Value:
    return b.const(number, RegisterType(F32, Layout(_rank(like))))


def _polynomial(b: Rewriter, x: Value, coefficients: Sequence[float], hint: str = "poly") -> Value:
    """Horner's rule, the coefficient of x**0 first."""
    acc = _number(b, x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        acc = b(m.Fma, acc, x, _number(b, x, coefficient), hint=hint)
    return acc


def exp2_parts(b: Rewriter, op: Any) -> Value:
    """exp2 of f32: NaN passes, -inf gives 0, +inf and overflow give inf."""
    x = op.operands[0]
    f = b(m.Fraction, x, hint="fraction")
    return b(m.Scale2, _polynomial(b, f, EXP2), x, hint=op.result.hint)


def weights(graph: Graph) -> set[Op]:
    """The exponentials of differences, as a softmax's weights are, and those of which only
    1 / (1 + exp x) is taken."""
    every = [op for op in graph.body.walk() if isinstance(op, m.Exp)]
    if not every:
        return set()
    made, users = {r: op for op in graph.body.walk() for r in op.results}, graph.users()

    def only(value: Value, cls: type[Op]) -> Op | None:
        used = users.get(value, [])
        return used[0] if len(used) == 1 and isinstance(used[0], cls) else None

    def logistic(exp: Op) -> bool:
        below = only(exp.result, m.Add)
        whole = below and only(below.result, m.Div)
        return whole is not None and isinstance(made.get(whole.operands[0]), m.Const)

    return {x for x in every if isinstance(made.get(x.operands[0]), m.Sub) or logistic(x)}


def exp_of_weight(b: Rewriter, op: Any) -> Value:
    """exp x -> exp2(x * log2 e), the product rounded."""
    x = op.operands[0]
    scaled = b(m.Mul, x, _number(b, x, LOG2E), hint="scaled")
    return exp2_parts(b, b.add(m.Exp2(scaled, hints=[op.result.hint])))


def exp_parts(b: Rewriter, op: Any) -> Value:
    """exp x -> exp2(x * log2 e), and what the product lost when it was rounded."""
    x = op.operands[0]
    high = _number(b, x, LOG2E_HIGH)
    scaled = b(m.Mul, x, high, hint="scaled")
    lost = b(m.Fma, x, high, b(m.Neg, scaled), fused=True, hint="lost")
    lost = b(m.Fma, x, _number(b, x, LOG2E - LOG2E_HIGH), lost, hint="lost")
    lost = b(m.Smaller, lost, _number(b, x, LOST), hint="lost")  # a number also at infinities
    lost = b(m.Larger, lost, _number(b, x, -LOST), hint="lost")
    f = b(m.Add, b(m.Fraction, scaled, hint="fraction"), lost, hint="fraction")
    return b(m.Scale2, _polynomial(b, f, EXP2), scaled, hint=op.result.hint)


def _odd(b: Rewriter, op: Any, parts: tuple[Sequence[float], Sequence[float]], one: float) -> Value:
    """x p(x^2) / q(x^2): as exact near 0 as x is, and never beyond 1."""
    x = op.operands[0]
    square = b(m.Mul, x, x, hint="square")  # x itself may grow: the ratio is 1 and more from there
    square = b(m.Smaller, _number(b, x, one * one), square, hint="square")
    above = b(m.Mul, x, _polynomial(b, square, parts[0], "above"), hint="above")
    ratio = b(m.Div, above, _polynomial(b, square, parts[1], "below"), hint="ratio")
    ratio = b(m.Smaller, _number(b, x, 1.0), ratio, hint="ratio")  # NaN passes
    return b(m.Larger, _number(b, x, -1.0), ratio, hint=op.result.hint)


def tanh_parts(b: Rewriter, op: Any) -> Value:
    """tanh x -> x p(x^2) / q(x^2)"""
    return _odd(b, op, TANH, TANH_ONE)


def erf_parts(b: Rewriter, op: Any) -> Value:
    """erf x -> x p(x^2) / q(x^2)"""
    return _odd(b, op, ERF, ERF_ONE)


def sigmoid_parts(b: Rewriter, op: Any) -> Value:
    """sigmoid x -> 1 / (1 + exp(-x))"""
    x = op.operands[0]
    scaled = b(m.Mul, x, _number(b, x, -LOG2E), hint="scaled")
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
    m.Log: log_parts,
    m.Log2: log2_parts,
}


def expand_math_graph(graph: Graph) -> Graph:
    """Every function on f32 register tiles as arithmetic."""
    light = weights(graph)

    def rule(b: Rewriter, op: Op) -> Value | None:
        parts = PARTS.get(type(op))
        if parts is None or getattr(op.result.type, "dtype", None) != F32:
            return None
        return exp_of_weight(b, op) if b.original in light else parts(b, op)

    return rewrite_graph(graph, rule)


def expand_math(module: Module) -> Module:
    """Expands functions in tile programs."""
    return for_each_graph(module, expand_math_graph, "tile")
