"""Rows of f32 in steps of 1/127 of their largest magnitude, as signed bytes hold them."""

from __future__ import annotations

from tilewright.ir import ops_math as m
from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import F32
from tilewright.passes.to_tile.emitter import TileBuilder

LARGEST = 127


def largest_across_lanes(b: TileBuilder, found: Value) -> Value:
    """The largest of magnitudes [rows, lanes] in each row; NaN if there is one, or an infinity."""
    whole = b(t.Reduce, found, kind="max", dim=1, hint="largest")
    # a maximum across lanes lets NaN through: x - x is NaN for it and for infinities, else 0
    odd = b(t.Reduce, b(m.Sub, found, found), kind="sum", dim=1)
    return b(m.Add, whole, odd, hint="largest")


def byte_steps(b: TileBuilder, largest: Value, least: float) -> tuple[Value, Value]:
    """The size of a step, and what numbers are multiplied by to be counted in steps: 0 for rows
    whose largest magnitude is not above ``least``, where the quotient would leave f32's range."""
    step = b(m.Mul, largest, b.number(1 / LARGEST, F32), hint="step")
    some = b(m.Compare, largest, b.number(least, F32), relation="gt")
    inverse = b(m.Div, b.number(float(LARGEST), F32), largest, hint="inverse")
    return step, b(m.Select, some, inverse, b.number(0.0, F32), hint="inverse")
