"""Folds constants and identities, shares equal pure operations, drops what nothing uses.

``%y = math.mul %x, %one`` with ``%one = math.const {value = 1}``  ->  uses of ``%y`` take ``%x``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir.core import Graph, Module, Op, Region, Value
from tilewright.ir.dtypes import DType
from tilewright.ir.types import IndexType
from tilewright.passes.rewrite import Rewriter, for_each_graph, rewrite_graph

Fold = Callable[[Rewriter, Any], Value | None]
FOLDS: dict[type[Op], list[Fold]] = {}


def fold(*classes: type[Op]) -> Callable[[Fold], Fold]:
    """Registers a folding rule for op classes; its docstring is the algebra."""

    def register(rule: Fold) -> Fold:
        for cls in classes:
            FOLDS.setdefault(cls, []).append(rule)
        return rule

    return register


def _same_type(op: Op, value: Value) -> Value | None:
    """``value`` if it can stand for the op's result (broadcasting would change the type)."""
    return value if value.type == op.result.type else None


@fold(m.Add)
def add_zero(b: Rewriter, op: Any) -> Value | None:
    """x + 0 -> x;  0 + x -> x"""
    if b.constant(op.rhs) == 0:
        return _same_type(op, op.lhs)
    return _same_type(op, op.rhs) if b.constant(op.lhs) == 0 else None


@fold(m.Sub)
def sub_zero(b: Rewriter, op: Any) -> Value | None:
    """x - 0 -> x"""
    return _same_type(op, op.lhs) if b.constant(op.rhs) == 0 else None


@fold(m.Mul)
def mul_one(b: Rewriter, op: Any) -> Value | None:
    """x * 1 -> x;  1 * x -> x;  on integers x * 0 -> 0"""
    if b.constant(op.rhs) == 1:
        return _same_type(op, op.lhs)
    if b.constant(op.lhs) == 1:
        return _same_type(op, op.rhs)
    if isinstance(op.result.type, IndexType) and 0 in (b.constant(op.lhs), b.constant(op.rhs)):
        return b.const(0, op.result.type)
    return None


def _is_normal(number: float, dtype: DType) -> bool:
    """True for zero and for numbers within the range of a float dtype's normal ones."""
    limit = 2.0 ** (2 ** (dtype.exponent - 1) - 2)
    return number == 0 or 1 / limit <= abs(number) < 2 * limit


@fold(m.Mul)
def mul_constants(b: Rewriter, op: Any) -> Value | None:
    """(x * c1) * c2 -> x * (c1 * c2)"""
    inner, factor = b.producer(op.lhs, m.Mul), b.constant(op.rhs)
    if inner is None or factor is None:
        return None
    first = b.constant(inner.operands[1])
    if first is None:
        return None
    dtype = getattr(op.result.type, "dtype", None)
    if dtype is not None and not (dtype.is_float and dtype.bits >= 32):
        return None  # the constants of a narrow dtype are rounded one by one
    if dtype is not None and not _is_normal(first * factor, dtype):
        return None
    product = b.const(first * factor, inner.operands[1].type)
    out = b(m.Mul, inner.operands[0], product, hint=op.result.hint)
    return _same_type(op, out)


@fold(m.Mul)
def mul_into_select(b: Rewriter, op: Any) -> Value | None:
    """select(c, x, k1) * k2 -> select(c, x * k2, k1 * k2)   (k2 > 0, so that -inf stays -inf)"""
    choice, factor = b.producer(op.lhs, m.Select), b.constant(op.rhs)
    if choice is None or factor is None or factor <= 0:
        return None
    condition, x, other = choice.operands
    known = b.constant(other)
    if known is None:
        return None
    scaled = b(m.Mul, x, op.rhs, hint=x.hint)
    return b(m.Select, condition, scaled, b.const(known * factor, other.type), hint=op.result.hint)


@fold(m.Div)
def div_constant(b: Rewriter, op: Any) -> Value | None:
    """x / 1 -> x;  float x / c -> x * (1 / c) where 1 / c is exact"""
    divisor = b.constant(op.rhs)
    if divisor == 1:
        return _same_type(op, op.lhs)
    dtype = getattr(op.result.type, "dtype", None)
    if not divisor or dtype is None or not dtype.is_float:
        return None
    exact = np.frexp(divisor)[0] in (0.5, -0.5) and _is_normal(1.0 / divisor, dtype)
    if not exact:
        return None
    return b(m.Mul, op.lhs, b.const(1.0 / divisor, op.rhs.type), hint=op.result.hint)


@fold(m.Cast)
def cast_same(b: Rewriter, op: Any) -> Value | None:
    """cast(x: t, t) -> x"""
    return _same_type(op, op.x)


@fold(m.Cast)
def cast_constant(b: Rewriter, op: Any) -> Value | None:
    """cast(const, t) -> const of t"""
    number, source = b.constant(op.x), getattr(op.x.type, "dtype", None)
    if number is None or not op.dtype.is_float or source is None or not source.is_float:
        return None
    rounded = op.dtype.round(np.float64(source.round(np.float64(number))))
    return b.const(float(rounded), op.result.type)


@fold(m.Select)
def select_constant(b: Rewriter, op: Any) -> Value | None:
    """select(true, x, y) -> x;  select(false, x, y) -> y;  select(c, x, x) -> x"""
    if op.lhs is op.rhs:
        return _same_type(op, op.lhs)
    known = b.constant(op.condition)
    if known is None:
        return None
    return _same_type(op, op.lhs if known else op.rhs)


@fold(m.And, m.Or)
def bool_constant(b: Rewriter, op: Any) -> Value | None:
    """x and true -> x;  x or false -> x;  x and false -> false;  x or true -> true"""
    absorbing = isinstance(op, m.Or)
    for one, other in ((op.lhs, op.rhs), (op.rhs, op.lhs)):
        known = b.constant(one)
        if known is not None:
            return _same_type(op, one if bool(known) == absorbing else other)
    return None


_INDEX_FOLDS: dict[type[Op], Callable[[int, int], int]] = {
    m.Add: lambda a, c: a + c,
    m.Sub: lambda a, c: a - c,
    m.Mul: lambda a, c: a * c,
    m.Div: lambda a, c: a // c if c else 0,
    m.Mod: lambda a, c: a % c if c else a,
    m.Min: min,
    m.Max: max,
}


def _fold_index(b: Rewriter, op: Op) -> Value | None:
    if type(op) not in _INDEX_FOLDS or not isinstance(op.result.type, IndexType):
        return None
    lhs, rhs = b.constant(op.operands[0]), b.constant(op.operands[1])
    if lhs is None or rhs is None:
        return None
    return b.const(_INDEX_FOLDS[type(op)](int(lhs), int(rhs)), op.result.type)


def fold_op(b: Rewriter, op: Op) -> Value | None:
    """The first fold that applies to ``op``."""
    if len(op.results) != 1:
        return None
    for rule in FOLDS.get(type(op), ()):
        found = rule(b, op)
        if found is not None:
            return found
    return _fold_index(b, op)


def share(graph: Graph) -> Graph:
    """Common subexpressions of pure ops computed once (CSE), within and below a region."""
    tables: dict[tuple[Any, ...], tuple[Value, ...]] = {}

    def rule(b: Rewriter, op: Op) -> tuple[Value, ...] | None:
        # each sink is a result of its own, even if two write the same value
        if "pure" not in op.traits or op.regions or op.name == "stream.sink":
            return None
        key = (type(op), op.operands, str(sorted((k, str(v)) for k, v in op.attrs.items())))
        found = tables.get(key)
        if found is not None and all(v in b.made_by for v in found):
            return found
        tables[key] = op.results
        return None

    return rewrite_graph(graph, rule)


def drop_dead(graph: Graph) -> Graph:
    """Removes operations without effect whose results nothing uses (DCE)."""
    return graph.with_body(_drop_region(graph.body, set(graph.body.yields)))


def _drop_region(region: Region, live: set[Value]) -> Region:
    kept: list[Op] = []
    for op in reversed(region.ops):
        if not (_has_effect(op) or any(r in live for r in op.results)):
            continue
        regions = [_drop_region(r, live | set(r.yields)) for r in op.regions]
        kept.append(op if not regions else _with_regions(op, regions))
        live.update(op.operands)
        for inner in regions:
            for nested in inner.walk():
                live.update(nested.operands)
            live.update(inner.yields)
    return Region(region.params, tuple(reversed(kept)), region.yields)


def _with_regions(op: Op, regions: list[Region]) -> Op:
    if all(a.ops == b.ops for a, b in zip(op.regions, regions, strict=True)):
        return op
    fresh = op.rebuilt(op.operands, regions)
    fresh.results = op.results
    return fresh


def _has_effect(op: Op) -> bool:
    return "writes" in op.traits or any(_has_effect(o) for r in op.regions for o in r.ops)


def canonicalise_graph(graph: Graph) -> Graph:
    """Folds, shares and drops until nothing changes (at most a few rounds)."""
    folded = True

    def rule(b: Rewriter, op: Op) -> Value | None:
        nonlocal folded
        found = fold_op(b, op)
        folded = folded or found is not None
        return found

    for _ in range(8):
        folded = False
        before = sum(1 for _ in graph.body.walk())
        graph = drop_dead(share(rewrite_graph(graph, rule)))
        same = not folded and sum(1 for _ in graph.body.walk()) == before
        if graph.level == "tile" or same:
            break
    return graph


def canonicalise(module: Module) -> Module:
    """Folds, CSE and DCE on every graph."""
    return for_each_graph(module, canonicalise_graph)


__all__ = ["FOLDS", "canonicalise", "canonicalise_graph", "drop_dead", "share"]
