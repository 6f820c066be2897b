"""Masks as intervals: which part of the inner axis a block of rows needs, and where no mask
applies.

A condition that compares positions linearly, ``m <= n + c``, bounds m from above by the largest
n of
the block (beyond it nothing contributes: skipped) and by the smallest n (up to it all
contribute: the
mask need not be computed). Nothing is stored per position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tilewright.ir import ops_math as m
from tilewright.ir import ops_stream as s
from tilewright.ir.core import Op, Value
from tilewright.passes.to_tile.kernel_info import KernelInfo

Affine = dict[str, int]  # coefficient per axis name; "" is the constant


@dataclass(frozen=True)
class Bound:
    """inner <= sum(coefficient * axis) + constant (``upper``), or >= it."""

    upper: bool
    terms: tuple[tuple[str, int], ...]
    constant: int


@dataclass
class MaskRange:
    """Bounds from masks; ``conditions`` hold throughout the part that satisfies all bounds."""

    bounds: list[Bound] = field(default_factory=list)
    conditions: set[Value] = field(default_factory=set)


def find_mask_range(info: KernelInfo) -> MaskRange:
    """Bounds of all masks outside of which no position contributes to any result."""
    out = MaskRange()
    for op in info.graph.body.ops:
        if not isinstance(op, m.Select) or not info.varies(op.result):
            continue
        found = _bounds(info, op.condition)
        if found and _contributes_nothing(info, op.condition):
            out.bounds.extend(found)
            out.conditions.add(op.condition)
    return out


def _bounds(info: KernelInfo, condition: Value) -> list[Bound]:
    op = info.made.get(condition)
    if isinstance(op, m.And):
        left, right = _bounds(info, op.lhs), _bounds(info, op.rhs)
        return left + right if left and right else []
    if not isinstance(op, m.Compare) or op.relation in ("eq", "ne"):
        return []
    lhs, rhs = _affine(info, op.lhs), _affine(info, op.rhs)
    if lhs is None or rhs is None:
        return []
    if op.relation in ("ge", "gt"):
        lhs, rhs = rhs, lhs
    slack = 1 if op.relation in ("lt", "gt") else 0
    below = {k: rhs.get(k, 0) - lhs.get(k, 0) for k in {*lhs, *rhs}}  # 0 <= below - slack
    below[""] = below.get("", 0) - slack
    step = below.pop(info.inner.name, 0)
    if step not in (1, -1):
        return []
    sign = -step  # upper bound: inner <= rest; lower bound: inner >= -rest
    constant = below.pop("") * sign
    terms = tuple(sorted((k, c * sign) for k, c in below.items() if c))
    return [Bound(step == -1, terms, constant)]


def _affine(info: KernelInfo, value: Value) -> Affine | None:
    op = info.made.get(value)
    if isinstance(op, s.Index):
        return {op.axis: 1}
    if isinstance(op, m.Const):
        whole = float(op.value).is_integer()
        return {"": int(op.value)} if whole else None
    if isinstance(op, s.Repeat):
        return _affine(info, op.x)
    if isinstance(op, m.Cast) and op.dtype.is_int and op.dtype.bits >= 32:
        return _affine(info, op.x)
    if not isinstance(op, m.Add | m.Sub):
        return None
    lhs, rhs = _affine(info, op.lhs), _affine(info, op.rhs)
    if lhs is None or rhs is None:
        return None
    sign = 1 if isinstance(op, m.Add) else -1
    return {k: lhs.get(k, 0) + sign * rhs.get(k, 0) for k in {*lhs, *rhs}}


def _contributes_nothing(info: KernelInfo, condition: Value) -> bool:
    """True if with the condition false every maximum sees -inf and every sum a factor 0."""
    known: dict[Value, float] = {}
    for op in info.graph.body.ops:
        if isinstance(op, s.Scan | s.Reduce):
            neutral = -math.inf if op.kind == "max" else 0.0
            if known.get(op.x) != neutral or op.kind == "min":
                return False
        elif isinstance(op, s.Sink):
            if info.varies(op.x):
                return False
        elif len(op.results) == 1:
            number = _constant_of(op, known, condition)
            if number is not None:
                known[op.result] = number
    return True


def _constant_of(op: Op, known: dict[Value, float], condition: Value) -> float | None:
    """The value of a map where ``condition`` is false, for the inputs that are known (finite values
    assumed for the others)."""
    if isinstance(op, m.Const):
        return float(op.value)
    if isinstance(op, m.Select):
        other = known.get(op.rhs)
        return other if op.condition is condition or known.get(op.lhs) == other else None
    inputs = [known.get(v) for v in op.operands]
    if isinstance(op, m.Sub | m.Add) and inputs[0] == -math.inf:
        return -math.inf
    if isinstance(op, m.Mul):
        if 0.0 in inputs:
            return 0.0
        if -math.inf in inputs and any(x is not None and 0 < x < math.inf for x in inputs):
            return -math.inf
    if isinstance(op, m.Exp | m.Exp2) and inputs[0] == -math.inf:
        return 0.0
    if isinstance(op, m.Cast | s.Repeat):
        return inputs[0]
    return 0.0 if isinstance(op, m.Div) and inputs[0] == 0.0 else None
