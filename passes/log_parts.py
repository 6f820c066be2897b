"""Logarithms of f32 register tiles as arithmetic on bits and a polynomial.

    x = 2^k m, m in [sqrt(1/2), sqrt 2), r = m - 1 (exact)
    log x  = k ln 2 + r - r^2 / 2 + r^3 p(r)          relative error below 2^-23
    log2 x = k + (r - r^2 / 2 + r^3 p(r)) log2 e      the same

p of degree 8 and the order of the last sums: Cephes (S. L. Moshier, logf.c, log2f.c).
"""

from __future__ import annotations

import math
from typing import Any

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.layout import Layout
from tilewright.ir.ops_lowbit import View
from tilewright.ir.types import RegisterType
from tilewright.passes.rewrite import Rewriter

P = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # k * LN2_HIGH is exact
LOG2E_LESS_ONE = 0.44269504088896340736
HALF_ROOT = 0x3F3504F3  # the bits of sqrt(1/2)
SMALLEST = 2.0**-126  # normal number
RAISED = 23  # exponents that numbers below it are raised by


class _Parts:
    """k, r and the polynomial of one operand."""

    def __init__(self, b: Rewriter, x: Value) -> None:
        self.b, self.x = b, x
        assert isinstance(x.type, RegisterType)
        self.layout = x.type.layout
        tiny = b(m.Compare, x, self.number(SMALLEST), relation="lt", hint="tiny")
        raised = b(m.Mul, x, self.number(2.0**RAISED), hint="raised")
        normal = b(m.Select, tiny, raised, x, hint="normal")
        bits = b(View, normal, dtype=I32, layout=self.layout, hint="bits")
        above = b(m.Sub, bits, self.whole(HALF_ROOT), hint="above")
        power = b(m.ShiftRightSigned, above, self.whole(23), hint="power")
        moved = b(m.ShiftLeft, power, self.whole(23), hint="moved")
        rest = b(m.Sub, bits, moved, hint="rest")
        mantissa = b(View, rest, dtype=F32, layout=self.layout, hint="mantissa")
        self.r = b(m.Sub, mantissa, self.number(1.0), hint="r")
        less = b(m.Select, tiny, self.whole(RAISED), self.whole(0), hint="less")
        power = b(m.Sub, power, less, hint="power")
        self.k = b(m.Cast, power, dtype=F32, hint="k")
        self.square = b(m.Mul, self.r, self.r, hint="square")
        acc = self.number(P[0])
        for coefficient in P[1:]:
            acc = b(m.Fma, acc, self.r, self.number(coefficient), hint="poly")
        cube = b(m.Mul, self.square, self.r, hint="cube")
        self.y = b(m.Mul, acc, cube, hint="y")

    def number(self, value: float) -> Value:
        return self.b.const(value, RegisterType(F32, Layout(self.layout.rank)))

    def whole(self, value: int) -> Value:
        return self.b.const(value, RegisterType(I32, Layout(self.layout.rank)))

    def checked(self, result: Value, hint: str) -> Value:
        """-inf of 0, NaN below it; infinity and NaN stay."""
        b, zero = self.b, self.number(0.0)
        finite = b(m.Compare, self.x, self.number(math.inf), relation="lt")
        result = b(m.Select, finite, result, self.x)
        none = b(m.Compare, self.x, zero, relation="eq")
        result = b(m.Select, none, self.number(-math.inf), result)
        below = b(m.Compare, self.x, zero, relation="lt")
        return b(m.Select, below, self.number(math.nan), result, hint=hint)


def log_parts(b: Rewriter, op: Any) -> Value:
    """The natural logarithm."""
    p = _Parts(b, op.operands[0])
    y = b(m.Fma, p.k, p.number(LN2_LOW), p.y)
    y = b(m.Fma, p.square, p.number(-0.5), y)
    z = b(m.Add, p.r, y)
    return p.checked(b(m.Fma, p.k, p.number(LN2_HIGH), z), op.result.hint)


def log2_parts(b: Rewriter, op: Any) -> Value:
    """The logarithm to base 2."""
    p = _Parts(b, op.operands[0])
    y = b(m.Fma, p.square, p.number(-0.5), p.y)
    z = b(m.Mul, y, p.number(LOG2E_LESS_ONE))
    z = b(m.Fma, p.r, p.number(LOG2E_LESS_ONE), z)
    z = b(m.Add, b(m.Add, z, y), p.r)
    return p.checked(b(m.Add, z, p.k), op.result.hint)
