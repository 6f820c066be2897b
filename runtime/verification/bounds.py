"""The bound of a tensor-level program for given inputs: every operation's rule, and the walk.

``bounded`` gives the exact results, as the oracle ``tilewright.evaluate(..., precision="f64")``
does, and for every element how far a back end's result may be from it (``rounded.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tilewright.ir import ops_math as m
from tilewright.ir import ops_routing as r
from tilewright.ir import ops_tensor as t
from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph, Op, Value
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.evaluate import Arithmetic, reported, run_op
from tilewright.ir.ops_lowbit import Dequantize, dequantised
from tilewright.ir.types import TensorType
from tilewright.runtime.verification.rounded import (
    INF,
    ROUNDINGS,
    Rounded,
    added,
    compared,
    contracted,
    divided,
    extreme,
    monotone,
    multiplied,
    narrowed,
    selected,
    settled,
    smallest,
    summed,
    truth,
    unit,
)

Rule = Callable[[Any, list[Rounded], list[Any], dict[str, int]], list[Rounded]]
RULES: dict[type[Op], Rule] = {}
One = Callable[[Any, list[Rounded], Any], Rounded]


def bounded(graph: Graph, *inputs: Any, sizes: dict[str, int] | None = None) -> tuple[Rounded, ...]:
    """Results of a tensor-level graph on NumPy arrays with their bounds. Raises BindError,
    EvaluationError; UnsupportedError for an operation without a rule."""
    arithmetic = Arithmetic(exact=True)
    arrays = [np.asarray(x) for x in inputs]
    values = bind_sizes(graph, [a.shape for a in arrays], sizes)
    scope: dict[Value, Rounded] = {}
    for param, array in zip(graph.params, arrays, strict=True):
        exact = Rounded.exact(arithmetic.settle(array, _dtype(param)))
        scope[param] = settled(exact, _dtype(param))
    with np.errstate(all="ignore"):
        for op in graph.body.ops:
            _step(op, scope, values, arithmetic)
    return tuple(scope[v] for v in graph.results)


def _step(
    op: Op, scope: dict[Value, Rounded], sizes: dict[str, int], arithmetic: Arithmetic
) -> None:
    rule = RULES.get(type(op))
    if rule is None:
        raise UnsupportedError(f"no rule says what {op.name} may round: it cannot be verified")
    given = [scope[v] for v in op.operands]
    with reported(op):
        outputs = run_op(op, [g.x for g in given], sizes)
    pairs = zip(op.results, outputs, strict=True)
    exact = [arithmetic.settle(x, _dtype(v)) for v, x in pairs]
    made = rule(op, given, exact, sizes)
    for value, out in zip(op.results, made, strict=True):
        scope[value] = settled(out, _dtype(value))


def _dtype(value: Value) -> DType:
    assert isinstance(value.type, TensorType)
    return value.type.dtype


def _rule(*ops: type[Op]) -> Callable[[One], One]:
    """Declares the rule of operations with one result."""

    def add(one: One) -> One:
        for op in ops:
            RULES[op] = lambda op, given, exact, _: [one(op, given, exact[0])]
        return one

    return add


# ---- arithmetic


@_rule(m.Add, m.Sub)
def _sums(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype = _dtype(op.result)
    return added(x, tuple(given), dtype) if dtype.is_float else _exactly(given, x)


@_rule(m.Mul)
def _products(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype = _dtype(op.result)
    return multiplied(x, given[0], given[1], dtype) if dtype.is_float else _exactly(given, x)


@_rule(m.Div)
def _quotients(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype = _dtype(op.result)
    return divided(x, given[0], given[1], dtype) if dtype.is_float else _exactly(given, x)


@_rule(m.Fma)
def _fma(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype, (a, b, c) = _dtype(op.result), given
    return added(x, (multiplied(np.asarray(a.x) * b.x, a, b, dtype), c), dtype)


@_rule(m.Neg, m.Abs)
def _same_size(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return Rounded(x, given[0].size, given[0].error)


@_rule(m.Max, m.Min, m.Larger, m.Smaller)
def _extremes(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, b = given
    clear = np.abs(np.asarray(a.x, np.float64) - b.x) > a.error + b.error
    takes_a = np.asarray(x == a.x)
    error = np.where(clear, np.where(takes_a, a.error, b.error), np.maximum(a.error, b.error))
    return Rounded(x, np.maximum(a.size, b.size), error)


def _exactly(given: list[Rounded], x: Any) -> Rounded:
    """Integers and booleans: certain if all they are made of is."""
    x = np.asarray(x)
    error = sum(np.where(g.certain, 0.0, INF) for g in given) + np.zeros(x.shape)
    return Rounded(x, np.abs(x.astype(np.float64)), error)


INTEGER_OPS = (m.Mod, m.BitAnd, m.BitOr, m.BitXor, m.ShiftLeft, m.ShiftRight, m.ShiftRightSigned)


@_rule(*INTEGER_OPS)
def _integers(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return _exactly(given, x)


@_rule(m.Not)
def _not(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return truth(x, ~given[0].certain)


@_rule(m.And)
def _and(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, b = given
    false = (a.certain & ~np.asarray(a.x, bool)) | (b.certain & ~np.asarray(b.x, bool))
    return truth(x, ~(a.certain & b.certain) & ~false)


@_rule(m.Or)
def _or(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, b = given
    true = (a.certain & np.asarray(a.x, bool)) | (b.certain & np.asarray(b.x, bool))
    return truth(x, ~(a.certain & b.certain) & ~true)


@_rule(m.Compare)
def _compare(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return compared(x, *given)


@_rule(m.Select)
def _select(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return selected(x, *given)


@_rule(m.Cast)
def _cast(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return narrowed(x, given[0], _dtype(op.x), _dtype(op.result))


@_rule(m.Const, t.Iota)
def _given(op: Any, given: list[Rounded], x: Any) -> Rounded:
    # a constant that its dtype cannot hold is rounded once
    dtype = _dtype(op.result)
    known = Rounded.exact(x)
    if not dtype.is_float:
        return known
    held = np.asarray(dtype.round(x), np.float64)
    lost = np.where(np.isfinite(x), np.abs(np.asarray(x) - held), 0.0)
    return Rounded(x, known.size, known.error + lost)


@_rule(m.SizeValue)
def _size(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return Rounded.exact(x)


# ---- functions


def _function(op: type[Op], f: Callable[[Any], Any], scale: Callable[[Any], Any]) -> None:
    def rule(op: Any, given: list[Rounded], x: Any) -> Rounded:
        return monotone(f, x, given[0], _dtype(op.result), scale=scale(np.asarray(x)))

    _rule(op)(rule)


def _relative(x: Any) -> Any:
    return np.where(np.isfinite(x), np.abs(x), 0.0)


def _to_one(x: Any) -> Any:
    """Absolute: the function is a difference or a sum of numbers around 1."""
    return np.ones(np.shape(x))


_function(m.Tanh, np.tanh, _to_one)
_function(m.Erf, m.erf, _to_one)
_function(m.Sqrt, np.sqrt, _relative)
_function(m.Rsqrt, lambda x: 1 / np.sqrt(x), _relative)
_function(m.Log, np.log, lambda x: _relative(x) + 1)
_function(m.Log2, np.log2, lambda x: _relative(x) + 1)
_function(m.Round, np.rint, np.zeros_like)


def _sigmoid_of(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@_rule(m.Exp, m.Exp2, m.Sigmoid)
def _exponential(op: Any, given: list[Rounded], x: Any) -> Rounded:
    functions: dict[type[Op], Callable[[Any], Any]] = {
        m.Exp: np.exp,
        m.Exp2: np.exp2,
        m.Sigmoid: _sigmoid_of,
    }
    f = functions[type(op)]
    dtype = _dtype(op.result)
    return monotone(f, x, given[0], dtype, scale=_relative(x), floor=smallest(dtype))


@_rule(m.Pow)
def _power(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, b = given
    scale = _relative(x) * (1 + np.abs(b.x * np.log(np.abs(a.x))))
    error = 4 * ROUNDINGS * unit(_dtype(op.result)) * scale
    return Rounded(x, _relative(x), np.where(a.certain & b.certain, error, INF))


# ---- sums and shapes


@_rule(t.Contract)
def _contract(op: Any, given: list[Rounded], x: Any) -> Rounded:
    return contracted(x, op.equation, given[0], given[1], _dtype(op.result))


@_rule(t.Reduce)
def _reduce(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype, (terms,) = _dtype(op.result), given
    if op.kind == "sum" and dtype.is_float:
        return summed(x, terms, op.axis, op.keep, dtype)
    if op.kind == "sum":
        every = np.all(terms.certain, axis=op.axis, keepdims=op.keep)
        return Rounded(x, np.abs(np.asarray(x, np.float64)), np.where(every, 0.0, INF))
    return extreme(x, terms, op.axis, op.keep)


@_rule(t.Softmax)
def _softmax(op: Any, given: list[Rounded], x: Any) -> Rounded:
    dtype, (a,), axis = _dtype(op.result), given, op.axis
    top = extreme(np.max(a.x, axis=axis, keepdims=True, initial=-INF), a, axis, True)
    below = settled(added(a.x - top.x, (a, top), dtype), dtype)
    e = settled(monotone(np.exp, np.exp(below.x), below, dtype, scale=1.0), dtype)
    total = settled(summed(np.sum(e.x, axis=axis, keepdims=True), e, axis, True, dtype), dtype)
    out = divided(e.x / total.x, e, total, dtype)
    if not op.safe:
        return Rounded(x, out.size, out.error)
    empty = (top.x == -INF) & np.isfinite(top.error)
    return Rounded(x, np.where(empty, 0.0, out.size), np.where(empty, 0.0, out.error))


def _moved(op: Any, given: list[Rounded], exact: list[Any], sizes: dict[str, int]) -> list[Rounded]:
    """Operations that only move elements move what is known of them."""
    size = run_op(op, [g.size for g in given], sizes)[0]
    error = run_op(op, [g.error for g in given], sizes)[0]
    return [Rounded(exact[0], size, error)]


for _op in (t.Transpose, t.Reshape, t.Broadcast, t.Roll, t.Slice, t.Concat):
    RULES[_op] = _moved


@_rule(t.Gather)
def _gather(op: Any, given: list[Rounded], x: Any) -> Rounded:
    data, *indices = given
    at = [i.x for i in indices]
    doubtful = sum(np.where(i.certain, 0.0, INF) for i in indices)
    return Rounded(x, op.reference(data.size, *at), op.reference(data.error, *at) + doubtful)


@_rule(Dequantize)
def _dequantize(op: Any, given: list[Rounded], x: Any) -> Rounded:
    """(code - zero) * scale: two roundings relative to (code + zero) * scale."""
    words, scales, *more = (g.x for g in given)
    length = np.shape(x)[1]

    def values(zero: float, scales: Any, scale: DType) -> Any:
        form = SimpleNamespace(
            layout=op.layout, dtype=op.dtype, signed=op.signed, scale=scale, extra="", zero=zero
        )
        return dequantised(form, words, scales, (), length)

    ones = np.ones(np.shape(scales))
    codes = values(0, ones, F32)
    step = np.abs(values(-1, scales, op.scale) - values(0, scales, op.scale))
    zero = np.abs(float(op.zero))
    if op.extra == "zeros":
        zero = np.abs(values(-1, more[0], F32) - values(0, more[0], F32))
    size = (np.abs(codes) + zero) * step
    return Rounded(x, size, ROUNDINGS * unit(F32) * size)


# ---- routing


def _top_k(op: Any, given: list[Rounded], exact: list[Any], _: dict[str, int]) -> list[Rounded]:
    """Certain where the chosen lie apart from each other and from the rest by their errors."""
    (a,), (values, ids) = given, exact
    order = np.argsort(a.x, axis=-1)
    sorted_x = np.take_along_axis(np.asarray(a.x, np.float64), order, -1)
    sorted_e = np.take_along_axis(a.error, order, -1)
    near = np.diff(sorted_x, axis=-1) <= sorted_e[..., 1:] + sorted_e[..., :-1]
    inexact = (sorted_e[..., 1:] + sorted_e[..., :-1]) > 0
    doubtful = np.any(near & inexact, axis=-1, keepdims=True)
    doubtful |= np.any(np.isinf(a.error), axis=-1, keepdims=True) & ~np.all(a.certain)
    error = np.where(doubtful, INF, np.take_along_axis(a.error, ids, -1))
    size = np.take_along_axis(a.size, ids, -1)
    lost = np.where(np.broadcast_to(doubtful, np.shape(ids)), INF, 0.0)
    return [Rounded(values, size, error), Rounded(ids, np.abs(ids) * 1.0, lost)]


RULES[r.TopK] = _top_k


@_rule(r.SortOrder)
def _sort_order(op: Any, given: list[Rounded], x: Any) -> Rounded:
    every = np.all(given[0].certain, axis=op.axis, keepdims=True)
    return Rounded(x, np.abs(x) * 1.0, np.where(every, 0.0, INF) + np.zeros(np.shape(x)))


@_rule(r.TakeAlong)
def _take_along(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, ids = given
    lost = np.where(ids.certain, 0.0, INF)
    return Rounded(x, op.reference(a.size, ids.x), op.reference(a.error, ids.x) + lost)


@_rule(r.Scatter)
def _scatter(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, ids, source = given
    size = op.reference(a.size, ids.x, source.size)
    error = op.reference(a.error, ids.x, source.error)
    if op.kind == "sum":
        count = float(np.shape(ids.x)[op.axis])
        error = error + (count + ROUNDINGS) * unit(_dtype(op.result)) * size
    every = np.all(ids.certain, axis=op.axis, keepdims=True)
    return Rounded(x, size, error + np.where(every, 0.0, INF))


@_rule(r.SegmentCount)
def _segment_count(op: Any, given: list[Rounded], x: Any) -> Rounded:
    lost = 0.0 if np.all(given[0].certain) else INF
    return Rounded(x, np.abs(x) * 1.0, np.full(np.shape(x), lost))


@_rule(r.SegmentRank)
def _segment_rank(op: Any, given: list[Rounded], x: Any) -> Rounded:
    lost = 0.0 if all(np.all(g.certain) for g in given) else INF
    return Rounded(x, np.abs(x) * 1.0, np.full(np.shape(x), lost))


@_rule(r.PrefixSum)
def _prefix_sum(op: Any, given: list[Rounded], x: Any) -> Rounded:
    a, dtype = given[0], _dtype(op.result)
    if not dtype.is_float:
        return Rounded(x, np.abs(x) * 1.0, np.where(np.all(a.certain), 0.0, INF) * np.ones(x.shape))
    size = op.reference(a.size)
    count = float(np.shape(x)[op.axis])
    error = op.reference(a.error) + (count + ROUNDINGS) * unit(dtype) * size
    return Rounded(x, size, error)
