"""Quantising new tokens as a program: one kernel where torch takes some thirty operations."""

from __future__ import annotations

from functools import lru_cache

import torch

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Builder, Graph, Module, Region, Value
from tilewright.ir.dtypes import F32, U8, DType
from tilewright.ir.sizes import Size
from tilewright.ir.types import TensorType
from tilewright.runtime.determinism import Level, using
from tilewright.runtime.kernel import FLOATS
from tilewright.runtime.kv_cache.quantise import FARTHEST
from tilewright.runtime.program import Program

Limits = tuple[float, float, float, float]


@lru_cache(maxsize=256)
def coder(
    form: CacheForm,
    symmetric: bool,
    dtype: torch.dtype,
    scales: torch.dtype,
    limits: Limits,
    level: Level,
) -> Program:
    """The program of ``quantising``'s graph, at a level of determinism."""
    given = FLOATS[dtype], FLOATS[scales]
    with using(level):
        return Program(Module((quantising(form, symmetric, *given, limits),)))


def quantising(
    form: CacheForm, symmetric: bool, dtype: DType, scales: DType, limits: Limits
) -> Graph:
    """Numbers [batch, heads, tokens, groups, numbers] (by channel [batch, heads, groups, tokens,
    channels]) to codes, scales and, if not ``symmetric``, zeros, all with as many dimensions: what
    ``quantise.py`` says in torch, operation by operation, with the same bits on the CPU.

    ``limits``: a number by which scales are raised, the least and the largest one, and what stands
    for those that are larger, or NaN.
    """
    by_token = form.by == "token"
    names = ("B", "H", "T" if by_token else "G")
    inner = (form.channel_groups, form.group) if by_token else (form.group, form.width)
    axis = 4 if by_token else 3
    shape = tuple(Size.of(x) for x in (*names, *inner))
    b, x = Builder(), Value(TensorType(shape, dtype), "x")

    def number(value: float) -> Value:
        return b(m.Const, value=float(value), type=TensorType((), F32))

    wide = x if dtype == F32 else b(m.Cast, x, dtype=F32, hint="wide")
    low, high = (
        b(t.Reduce, wide, kind=kind, axis=axis, keep=True, hint=hint)
        for kind, hint in (("min", "low"), ("max", "high"))
    )
    down = b(m.Neg, low, hint="down")
    size = b(m.Max, down, high, hint="farthest")
    levels, half = (1 << form.bits) - 1, 1 << (form.bits - 1)
    if symmetric:
        step = b(m.Div, size, number(max(half - 1, 1)), hint="step")
    else:
        least = b(m.Div, size, number(FARTHEST), hint="least")
        size = b(m.Max, b(m.Sub, high, low, hint="range"), least, hint="size")
        step = b(m.Div, size, number(levels), hint="step")
    up, least, largest, beyond = map(number, limits)
    raised = b(m.Mul, step, up, hint="raised")
    fits = b(m.Compare, raised, largest, relation="le", hint="fits")
    held = b(m.Select, fits, b(m.Max, raised, least, hint="normal"), beyond, hint="held")
    scale = b(m.Cast, held, dtype=scales, hint="scales")
    results = [scale]
    wide_scale = b(m.Cast, scale, dtype=F32, hint="scale")
    found = b(m.Div, wide, wide_scale, hint="found")
    if symmetric:
        whole = b(m.Round, found, hint="whole")
        inside = b(m.Min, b(m.Max, whole, number(-half)), number(half - 1), hint="inside")
        inside = b(m.Add, inside, number(half), hint="moved")
    else:
        zero = b(m.Cast, b(m.Div, down, wide_scale), dtype=scales, hint="zeros")
        results.append(zero)
        moved = b(m.Add, found, b(m.Cast, zero, dtype=F32, hint="zero"), hint="moved")
        whole = b(m.Round, moved, hint="whole")
        inside = b(m.Min, b(m.Max, whole, number(0)), number(levels), hint="inside")
    codes = b(m.Cast, inside, dtype=U8, hint="codes")
    return Graph("graph", "quantise", names, Region((x,), tuple(b.ops), (codes, *results)))
