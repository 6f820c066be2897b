"""Elementary functions that are made of others: logarithms near 1, rounding, signs, mixtures."""

from __future__ import annotations

import torch

from tilewright.frontend.op_map.emitter import Emitter, arithmetic_dtype, tensor_type
from tilewright.frontend.op_map.pointwise import binary
from tilewright.frontend.op_map.promotion import Operand, as_value
from tilewright.frontend.op_map.registry import Handler, Kind, handles
from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.errors import UnsupportedError

INFINITY = float("inf")


def log_of_one_more(e: Emitter, x: Value) -> Value:
    """log(1 + x), in the dtype of ``x``: log(1 + x) * x / ((1 + x) - 1) loses nothing where x is
    small (Kahan's log1p), and is x where 1 + x rounds to 1."""
    wide = tensor_type(x).dtype
    one = e.const(1.0, wide)
    above = e.op(m.Add, x, one)
    rest = e.op(m.Sub, above, one)
    small = e.compare(rest, e.const(0.0, wide), "eq")
    quotient = e.op(m.Div, x, e.select(small, one, rest, wide))
    return e.select(small, x, e.op(m.Mul, e.op(m.Log, above), quotient), wide)


def exp_less_one(e: Emitter, x: Value) -> Value:
    """exp(x) - 1, in the dtype of ``x``: 2 t / (1 - t) with t = tanh(x / 2) loses nothing where x
    is small or negative, exp(x) - 1 nothing where it is large."""
    wide = tensor_type(x).dtype
    one = e.const(1.0, wide)
    half = e.op(m.Tanh, binary(e, m.Mul, x, 0.5, wide))
    near = e.op(m.Div, e.op(m.Add, half, half), e.op(m.Sub, one, half))
    far = e.op(m.Sub, e.op(m.Exp, x), one)
    return e.select(e.compare(x, one, "gt"), far, near, wide)


def _floats(e: Emitter, input: Value) -> tuple[Value, DType]:
    """The input in the dtype that torch computes in, and that dtype."""
    wide = arithmetic_dtype(e.dtype)
    if not wide.is_float:
        raise UnsupportedError("of integers; only of floats")
    return e.cast(input, wide), wide


@handles("log1p", Kind.POINTWISE, [torch.log1p, torch.special.log1p], ["log1p"])
def log1p(e: Emitter, input: Value) -> Value:
    """log(1 + input), to the last digits where the input is small"""
    x, wide = _floats(e, input)
    infinite = e.compare(x, e.const(INFINITY, wide), "eq")
    return e.cast(e.select(infinite, x, log_of_one_more(e, x), wide), e.dtype)


@handles("expm1", Kind.POINTWISE, [torch.expm1, torch.special.expm1], ["expm1"])
def expm1(e: Emitter, input: Value) -> Value:
    """exp(input) - 1, to the last digits where the input is small (on GPUs to 2**-24 of 1)"""
    return e.cast(exp_less_one(e, _floats(e, input)[0]), e.dtype)


@handles("log10", Kind.POINTWISE, [torch.log10], ["log10"])
def log10(e: Emitter, input: Value) -> Value:
    """log2(input) / log2(10)"""
    x, wide = _floats(e, input)
    return e.cast(binary(e, m.Mul, e.op(m.Log2, x), 0.30102999566398119521, wide), e.dtype)


@handles("logaddexp", Kind.POINTWISE, [torch.logaddexp], ["logaddexp"])
def logaddexp(e: Emitter, input: Operand, other: Operand) -> Value:
    """log(exp(input) + exp(other))"""
    wide = arithmetic_dtype(e.dtype)
    a, b = as_value(e, input, wide), as_value(e, other, wide)
    apart = e.op(m.Abs, e.op(m.Sub, a, b))
    result = e.op(m.Add, e.op(m.Max, a, b), log_of_one_more(e, e.op(m.Exp, e.op(m.Neg, apart))))
    infinite = e.compare(e.op(m.Abs, a), e.const(INFINITY, wide), "eq")
    same = e.op(m.And, infinite, e.compare(a, b, "eq"))
    return e.cast(e.select(same, a, result, wide), e.dtype)


# ---- rounding and signs


@handles("round", Kind.POINTWISE, [torch.round], ["round"])
def round_(e: Emitter, input: Value, *, decimals: int = 0) -> Value:
    """To the nearest integer, ties to even"""
    if decimals:
        raise UnsupportedError("round to decimals; only to integers")
    return e.compute(m.Round, input, dtype=e.dtype) if e.dtype.is_float else input


@handles("floor", Kind.POINTWISE, [torch.floor], ["floor"])
def floor(e: Emitter, input: Value) -> Value:
    """Rounded down"""
    if not e.dtype.is_float:
        return input
    x, _ = _floats(e, input)
    return e.cast(_down(e, x), e.dtype)


@handles("ceil", Kind.POINTWISE, [torch.ceil], ["ceil"])
def ceil(e: Emitter, input: Value) -> Value:
    """-floor(-input)"""
    if not e.dtype.is_float:
        return input
    x, _ = _floats(e, input)
    return e.cast(e.op(m.Neg, _down(e, e.op(m.Neg, x))), e.dtype)


@handles("trunc", Kind.POINTWISE, [torch.trunc, torch.fix], ["trunc", "fix"])
def trunc(e: Emitter, input: Value) -> Value:
    """Rounded toward 0"""
    return e.cast(_toward_zero(e, _floats(e, input)[0]), e.dtype) if e.dtype.is_float else input


@handles("frac", Kind.POINTWISE, [torch.frac], ["frac"])
def frac(e: Emitter, input: Value) -> Value:
    """input - trunc(input)"""
    x, _ = _floats(e, input)
    return e.cast(e.op(m.Sub, x, _toward_zero(e, x)), e.dtype)


def _down(e: Emitter, x: Value) -> Value:
    """The nearest integer, one less where that lies above (x - fraction(x) may be none, for x in
    (-1, 0), where the fraction is rounded)."""
    wide, near = tensor_type(x).dtype, e.op(m.Round, x)
    above = e.compare(near, x, "gt")
    return e.select(above, e.op(m.Sub, near, e.const(1.0, wide)), near, wide)


def _toward_zero(e: Emitter, x: Value) -> Value:
    wide, whole = tensor_type(x).dtype, _down(e, e.op(m.Abs, x))
    negative = e.compare(x, e.const(0.0, wide), "lt")
    return e.select(negative, e.op(m.Neg, whole), whole, wide)


@handles("sign", Kind.POINTWISE, [torch.sign, torch.sgn], ["sign", "sgn"])
def sign(e: Emitter, input: Value) -> Value:
    """1, 0 or -1; 0 of NaN"""
    dtype = arithmetic_dtype(e.dtype)
    if dtype == BOOL:
        return input
    x, zero = e.cast(input, dtype), e.const(0, dtype)
    below = e.select(e.compare(x, zero, "lt"), e.const(-1, dtype), zero, dtype)
    return e.cast(e.select(e.compare(x, zero, "gt"), e.const(1, dtype), below, dtype), e.dtype)


def _register_finite(name: str, relation: str) -> Handler:
    @handles(name, Kind.POINTWISE, [getattr(torch, name)], [name])
    def finite(e: Emitter, input: Value) -> Value:
        dtype = tensor_type(input).dtype
        if not dtype.is_float:
            return e.broadcast(e.const(relation == "lt", BOOL), e.shape)
        wide = arithmetic_dtype(dtype)
        magnitude = e.op(m.Abs, e.cast(input, wide))
        return e.compare(magnitude, e.const(INFINITY, wide), relation)

    return finite


_register_finite("isinf", "eq")
_register_finite("isfinite", "lt")


# ---- mixtures


@handles("lerp", Kind.POINTWISE, [torch.lerp], ["lerp"])
def lerp(e: Emitter, input: Value, end: Value, weight: Operand) -> Value:
    """input + weight * (end - input), from the other side where the weight is 0.5 or more"""
    x, wide = _floats(e, input)
    y, w = e.cast(end, wide), as_value(e, weight, wide)
    apart = e.op(m.Sub, y, x)
    first = e.op(m.Add, x, e.op(m.Mul, w, apart))
    second = e.op(m.Sub, y, e.op(m.Mul, apart, e.op(m.Sub, e.const(1.0, wide), w)))
    near = e.compare(e.op(m.Abs, w), e.const(0.5, wide), "lt")
    return e.cast(e.select(near, first, second, wide), e.dtype)


def _register_mixture(name: str, cls: type[m.Binary]) -> Handler:
    @handles(name, Kind.POINTWISE, [getattr(torch, name)], [name])
    def mixture(
        e: Emitter, input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1
    ) -> Value:
        wide = arithmetic_dtype(e.dtype)
        x, y, z = (as_value(e, operand, wide) for operand in (input, tensor1, tensor2))
        scaled = y if value == 1 else binary(e, m.Mul, y, value, wide)
        return e.cast(e.op(m.Add, x, e.op(cls, scaled, z)), e.dtype)

    return mixture


_register_mixture("addcmul", m.Mul)
_register_mixture("addcdiv", m.Div)
