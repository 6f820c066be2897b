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
from tilewright.ir.sizes import Size
from tilewright.ir.types import StreamType
from tilewright.passes.to_tile.kernel_info import KernelInfo

Affine = tuple[dict[str, int], Size]  # coefficient per axis name, and a constant


@dataclass(frozen=True)
class Bound:
    """inner <= sum(coefficient * axis) + constant (``upper``), or >= it."""

    upper: bool
    terms: tuple[tuple[str, int], ...]
    constant: Size


@dataclass
class MaskRange:
    """What masks allow: outside of the bounds, and where a test fails, nothing contributes.

    ``tests`` are conditions that no bound describes; ``conditions`` (masks as a whole) hold
    wherever all bounds and all tests do.
    """

    bounds: list[Bound] = field(default_factory=list)
    tests: list[Value] = field(default_factory=list)
    conditions: set[Value] = field(default_factory=set)


def find_mask_range(info: KernelInfo) -> MaskRange:
    """Bounds and tests of all masks outside of which no position contributes to any result."""
    out = MaskRange()
    for op in info.graph.body.ops:
        if not isinstance(op, m.Select) or not info.varies(op.result):
            continue
        parts = _conjuncts(info, op.condition)
        known = [part for part in parts if _countable(info, part)]
        if not known or op.condition in out.conditions:
            continue
        if not _contributes_nothing(info, op.condition):
            continue
        for part in known:
            bound = _bound(info, part)
            if bound is not None:
                out.bounds.append(bound)
            elif part not in out.tests:
                out.tests.append(part)
        if len(known) == len(parts):
            out.conditions.add(op.condition)
    return out


def _conjuncts(info: KernelInfo, condition: Value) -> list[Value]:
    """The conditions that all have to hold."""
    op = info.made.get(condition)
    if isinstance(op, m.And):
        return [*_conjuncts(info, op.lhs), *_conjuncts(info, op.rhs)]
    return _conjuncts(info, op.x) if isinstance(op, s.Repeat) else [condition]


def _countable(info: KernelInfo, value: Value) -> bool:
    """True if intervals can say something about a condition: made from positions and integers of
    which each is read once per row or once per position, not once for every pair (a mask in
    memory is not worth a look ahead)."""
    op = info.made.get(value)
    if op is None or isinstance(op, m.Const | m.SizeValue | s.Index):
        return True
    if isinstance(op, s.Source):
        return not (info.varies(value) and info.on_rows(value)) and is_countable(value)
    if isinstance(op, s.Gather):
        return is_countable(value) and all(_countable(info, v) for v in op.indices)
    if "pointwise" not in op.traits and not isinstance(op, s.Repeat):
        return False
    return is_countable(value) and all(_countable(info, v) for v in op.operands)


def is_countable(value: Value) -> bool:
    """True for integers and conditions."""
    assert isinstance(value.type, StreamType)
    return not value.type.dtype.is_float


def _bound(info: KernelInfo, condition: Value) -> Bound | None:
    op = info.made.get(condition)
    if not isinstance(op, m.Compare) or op.relation in ("eq", "ne"):
        return None
    lhs, rhs = _affine(info, op.lhs), _affine(info, op.rhs)
    if lhs is None or rhs is None:
        return None
    if op.relation in ("ge", "gt"):
        lhs, rhs = rhs, lhs
    slack = 1 if op.relation in ("lt", "gt") else 0
    below = {k: rhs[0].get(k, 0) - lhs[0].get(k, 0) for k in {*lhs[0], *rhs[0]}}
    constant = rhs[1] - lhs[1] - Size.of(slack)  # 0 <= below + constant
    step = below.pop(info.inner.name, 0)
    if step not in (1, -1):
        return None
    sign = -step  # upper bound: inner <= rest; lower bound: inner >= -rest
    terms = tuple(sorted((k, c * sign) for k, c in below.items() if c))
    return Bound(step == -1, terms, constant * sign)


def _affine(info: KernelInfo, value: Value) -> Affine | None:
    op = info.made.get(value)
    if isinstance(op, s.Index):
        return {op.axis: 1}, Size()
    if isinstance(op, m.SizeValue):
        return {}, op.size
    if isinstance(op, m.Const):
        whole = float(op.value).is_integer()
        return ({}, Size.of(int(op.value))) if whole else None
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
    terms = {k: lhs[0].get(k, 0) + sign * rhs[0].get(k, 0) for k in {*lhs[0], *rhs[0]}}
    return terms, lhs[1] + rhs[1] * sign


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
