"""Activation functions written as operations, for builders of every level."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value

ACTIVATIONS = ("", "relu", "relu2", "silu", "gelu", "gelu_tanh")  # "": none


def activated(
    b: Callable[..., Value], number: Callable[[float], Value], name: str, x: Value
) -> Value:
    """The function ``name`` of f32 x: ``b(operation, *operands, hint=…)`` and ``number(value)``
    build."""
    if name in ("relu", "relu2"):
        x = b(m.Max, x, number(0.0), hint=name)
        return b(m.Mul, x, x, hint=name) if name == "relu2" else x
    if name == "silu":
        return b(m.Mul, x, b(m.Sigmoid, x), hint=name)
    if name == "gelu":
        bent = b(m.Erf, b(m.Mul, x, number(0.5**0.5)))
        return b(m.Mul, b(m.Mul, x, number(0.5)), b(m.Add, bent, number(1.0)), hint="gelu")
    if name == "gelu_tanh":
        cube = b(m.Mul, b(m.Mul, x, x), x)
        inner = b(m.Add, x, b(m.Mul, cube, number(0.044715)))
        bent = b(m.Tanh, b(m.Mul, inner, number(0.7978845608028654)))
        return b(m.Mul, b(m.Mul, x, number(0.5)), b(m.Add, bent, number(1.0)), hint="gelu")
    return x
