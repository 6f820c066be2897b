"""Reductions over dimensions: softmax, sum, mean, max, min, logsumexp."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.pointwise import maximum, minimum
from tilewright.frontend.op_map.registry import Handler, Kind, handles
from tilewright.frontend.torch_dtypes import ir_dtype
from tilewright.ir import ops_math as m
from tilewright.ir import ops_tensor as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL, F32
from tilewright.ir.errors import UnsupportedError

Axes = int | tuple[int, ...] | None


def axes_of(x: Value, dim: Axes) -> tuple[int, ...]:
    """The dimensions that ``dim`` names; all for None or an empty tuple."""
    rank = len(tensor_type(x).shape)
    if dim is None or dim == () or not rank:  # torch takes dim=-1 of a number
        return tuple(range(rank))
    return (dim,) if isinstance(dim, int) else dim


@handles("softmax", Kind.SOFTMAX, [torch.softmax], ["softmax"])
def softmax(e: Emitter, input: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    """torch.softmax: computed in f32, NaN for a row of -inf; ``dtype`` converts the input first"""
    if dtype is not None:
        input = e.cast(input, ir_dtype(dtype))
    if not e.shape:
        raise UnsupportedError("softmax of one number")
    wide = e.cast(input, arithmetic_dtype(e.dtype))
    return e.cast(e.op(t.Softmax, wide, axis=dim % len(e.shape)), e.dtype)


def _register_functional(name: str, kind: Kind, function: object, handler: Handler) -> Handler:
    @handles(f"functional.{name}", kind, [function])
    def functional(
        e: Emitter,
        input: Value,
        dim: int | None = None,
        _stacklevel: int = 3,
        dtype: torch.dtype | None = None,
    ) -> Value:
        """The same, with a stack level as the third positional argument"""
        if dim is None:
            raise UnsupportedError(f"{name} without dim; say which dimension")
        result: Value = handler(e, input, dim, dtype)
        return result

    return functional


_register_functional("softmax", Kind.SOFTMAX, F.softmax, softmax)


@handles("sum", Kind.REDUCTION, [torch.sum], ["sum"])
def reduce_sum(
    e: Emitter,
    input: Value,
    dim: Axes = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    """Sums in f32 (f64, i64)"""
    wide = e.cast(e.cast(input, e.dtype), arithmetic_dtype(e.dtype))
    return e.cast(e.reduce(wide, "sum", axes_of(input, dim), keepdim), e.dtype)


@handles("mean", Kind.REDUCTION, [torch.mean], ["mean"])
def reduce_mean(
    e: Emitter,
    input: Value,
    dim: Axes = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    """The sum divided by the number of elements"""
    wide = e.cast(e.cast(input, e.dtype), arithmetic_dtype(e.dtype))
    return e.cast(e.mean(wide, axes_of(input, dim), keepdim), e.dtype)


def _register_extremum(kind: str) -> Handler:
    functions = [getattr(torch, f"a{kind}")]

    @handles(f"a{kind}", Kind.REDUCTION, functions, [f"a{kind}"])
    def extremum(e: Emitter, input: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        wide = e.cast(input, arithmetic_dtype(e.dtype))
        axes = axes_of(input, dim)
        if any(tensor_type(input).shape[a].constant == 0 for a in axes):
            raise UnsupportedError(f"a {kind} of no elements; torch refuses it too")
        return e.cast(e.reduce(wide, kind, axes, keepdim), e.dtype)

    return extremum


amax, amin = _register_extremum("max"), _register_extremum("min")


def _register_overloaded(kind: str, pointwise: Handler, reduction: Handler) -> Handler:
    @handles(kind, Kind.REDUCTION, [getattr(torch, kind)], [kind])
    def overloaded(
        e: Emitter, input: Value, dim: int | Value | None = None, keepdim: bool = False
    ) -> Value | tuple[Value, ...]:
        """max(x), max(x, y), or max(x, dim), whose result is a tuple of which [0] is known"""
        if isinstance(dim, Value):
            result: Value = pointwise(e, input, dim)
            return result
        result = reduction(e, input, dim, keepdim)
        return result if dim is None else (result,)

    return overloaded


_register_overloaded("max", maximum, amax)
_register_overloaded("min", minimum, amin)


@handles("logsumexp", Kind.REDUCTION, [torch.logsumexp], ["logsumexp"])
def logsumexp(e: Emitter, input: Value, dim: Axes, keepdim: bool = False) -> Value:
    """log(sum(exp(x - max))) + max, with the maximum taken as 0 where it is infinite"""
    x = e.cast(e.cast(input, e.dtype), arithmetic_dtype(e.dtype))
    result = log_sum_exp(e, x, axes_of(input, dim))
    return e.cast(e.reshape(result, e.shape), e.dtype)


def log_sum_exp(e: Emitter, x: Value, axes: tuple[int, ...]) -> Value:
    """The same with the dimensions kept, in the dtype of ``x``."""
    wide = tensor_type(x).dtype
    top = e.reduce(x, "max", axes, keep=True)
    infinite = e.compare(e.op(m.Abs, top), e.const(float("inf"), wide), "eq")
    top = e.select(infinite, e.const(0.0, wide), top, wide)
    total = e.reduce(e.op(m.Exp, e.op(m.Sub, x, top)), "sum", axes, keep=True)
    return e.op(m.Add, e.op(m.Log, total), top)


@handles("log_softmax", Kind.REDUCTION, [torch.log_softmax], ["log_softmax"])
def log_softmax(e: Emitter, input: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    """(input - max) - log(sum(exp(input - max))), in f32 (f64)"""
    if dtype is not None:
        input = e.cast(input, ir_dtype(dtype))
    x, axes = e.cast(input, arithmetic_dtype(e.dtype)), axes_of(input, dim)
    below = e.op(m.Sub, x, e.reduce(x, "max", axes, keep=True))
    total = e.reduce(e.op(m.Exp, below), "sum", axes, keep=True)
    return e.cast(e.op(m.Sub, below, e.op(m.Log, total)), e.dtype)


_register_functional("log_softmax", Kind.REDUCTION, F.log_softmax, log_softmax)


def _register_spread(name: str, root: bool) -> Handler:
    @handles(name, Kind.REDUCTION, [getattr(torch, name)], [name])
    def spread(
        e: Emitter,
        input: Value,
        dim: Axes = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Value:
        """The sum of squared distances from the mean over n - correction; its root"""
        if isinstance(dim, bool):
            raise UnsupportedError("with unbiased in the place of dim; write unbiased=")
        wide, axes = arithmetic_dtype(e.dtype), axes_of(input, dim)
        x = e.cast(input, wide)
        apart = e.op(m.Sub, x, e.mean(x, axes, keep=True))
        total = e.reduce(e.op(m.Mul, apart, apart), "sum", axes, keepdim)
        count = e.count((tensor_type(input).shape[a] for a in axes), wide)
        less = float(unbiased) if correction is None else float(correction)
        free = e.op(m.Max, e.op(m.Sub, count, e.const(less, wide)), e.const(0.0, wide))
        result = e.op(m.Div, total, free)
        return e.cast(e.op(m.Sqrt, result) if root else result, e.dtype)

    return spread


_register_spread("var", root=False)
_register_spread("std", root=True)


def _register_truth(name: str, negated: bool) -> Handler:
    @handles(name, Kind.REDUCTION, [getattr(torch, name)], [name])
    def truth(e: Emitter, input: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        """Whether any (every) number is not 0; of none no (yes)"""
        dtype = tensor_type(input).dtype
        held = input if dtype == BOOL else e.compare(input, e.const(0, dtype), "ne")
        counted = e.cast(e.op(m.Not, held) if negated else held, F32)  # rows of floats have vectors
        total = e.reduce(counted, "sum", axes_of(input, dim), keepdim)
        found = e.compare(total, e.const(0.0, F32), "eq" if negated else "ne")
        return e.cast(found, e.dtype)

    return truth


_register_truth("any", negated=False)
_register_truth("all", negated=True)
