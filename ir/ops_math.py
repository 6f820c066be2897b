"""Pointwise operations. They mean the same on tensors, on streams (a map node), on register tiles
and on run-time integers; operands broadcast as in NumPy (streams: by axis name)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np

from tilewright.ir.broadcast import broadcast_types
from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import BOOL, I64, DType
from tilewright.ir.layout import Layout
from tilewright.ir.rounding import fraction_below, fused_multiply_add
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    BufferType,
    IndexType,
    RegisterType,
    ScratchType,
    StreamType,
    TensorType,
    Type,
    with_dtype,
)

FLOATS, INTEGERS, BOOLS = ("float",), ("int", "uint"), ("bool",)
NUMBERS = FLOATS + INTEGERS
ANY = NUMBERS + BOOLS


class Pointwise(Op, traits=("pure", "pointwise")):
    """Base: all operands of one dtype, of a kind in ``kinds``; result the broadcast of them."""

    kinds: ClassVar[tuple[str, ...]] = NUMBERS

    def infer(self) -> Type:
        types = [v.type for v in self.operands]
        first, *others = [getattr(t, "dtype", I64) for t in types]
        same = all(dtype is first or dtype == first for dtype in others)
        self.require(same, "operands must have one dtype (use math.cast)")
        if first.kind not in self.kinds:
            raise self.error(f"operands must be {' or '.join(self.kinds)}")
        return broadcast_types(self, types)


class Unary(Pointwise):
    x: Value = operand()


class Binary(Pointwise):
    lhs: Value = operand()
    rhs: Value = operand()


P = TypeVar("P", bound=Pointwise)


def _declare(
    base: type[P],
    name: str,
    fn: Callable[..., Any],
    doc: str,
    *traits: str,
    kinds: tuple[str, ...] = NUMBERS,
) -> type[P]:
    """A pointwise op class from its NumPy meaning; one row below declares one."""

    def reference(self: Op, *inputs: Any) -> Any:
        with np.errstate(all="ignore"):
            return fn(*inputs)

    class_name = "".join(part.title() for part in name.split("_"))
    space = {"__doc__": doc, "reference": reference, "kinds": kinds, "__module__": __name__}
    made: type[P] = type(class_name, (base,), space, name=f"math.{name}", traits=traits)
    return made


def _floor_divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return np.where(b == 0, 0, a // np.where(b == 0, 1, b))
    return a / b


def _round(x: Any) -> Any:
    return np.rint(x) if np.issubdtype(np.asarray(x).dtype, np.floating) else x


def erf(x: Any) -> Any:
    """NumPy has none."""
    array = np.asarray(x)
    return np.vectorize(math.erf, otypes=[array.dtype])(array)


def _unsigned(x: Any) -> Any:
    array = np.asarray(x)
    return array.view(array.dtype.str.replace("i", "u"))


def _shift_left(a: Any, b: Any) -> Any:
    kind = np.asarray(a).dtype
    return np.left_shift(_unsigned(a), _unsigned(b)).astype(kind.str.replace("i", "u")).view(kind)


def _shift_right(a: Any, b: Any) -> Any:
    kind = np.asarray(a).dtype
    return np.right_shift(_unsigned(a), _unsigned(b)).astype(kind.str.replace("i", "u")).view(kind)


def _shift_right_signed(a: Any, b: Any) -> Any:
    kind = np.asarray(a).dtype
    signed = np.asarray(a).view(kind.str.replace("u", "i"))
    return np.right_shift(signed, np.asarray(b).astype(signed.dtype)).view(kind)


def _maximum(a: Any, b: Any) -> Any:
    return np.maximum(a, b)


Add = _declare(Binary, "add", np.add, "Sum; of bool, either.", "commutative", kinds=ANY)
Sub = _declare(Binary, "sub", np.subtract, "Difference.")
Mul = _declare(Binary, "mul", np.multiply, "Product; of bool, both.", "commutative", kinds=ANY)
Div = _declare(Binary, "div", _floor_divide, "Quotient; of integers rounded down, 0 by zero.")
Mod = _declare(
    Binary,
    "mod",
    lambda a, b: a - _floor_divide(a, b) * b,
    "Remainder of integers.",
    kinds=INTEGERS,
)
Max = _declare(Binary, "max", _maximum, "The larger; NaN if either is.", "commutative", kinds=ANY)
Min = _declare(
    Binary, "min", np.minimum, "The smaller; NaN if either is.", "commutative", kinds=ANY
)
Pow = _declare(Binary, "pow", np.power, "lhs to the power of rhs.", kinds=FLOATS)
And = _declare(Binary, "and", np.logical_and, "Both (bool).", "commutative", kinds=BOOLS)
Or = _declare(Binary, "or", np.logical_or, "Either (bool).", "commutative", kinds=BOOLS)
Not = _declare(Unary, "not", np.logical_not, "Negation (bool).", kinds=BOOLS)
BitAnd = _declare(
    Binary, "bit_and", np.bitwise_and, "Bits set in both.", "commutative", kinds=INTEGERS
)
BitOr = _declare(
    Binary, "bit_or", np.bitwise_or, "Bits set in either.", "commutative", kinds=INTEGERS
)
BitXor = _declare(
    Binary, "bit_xor", np.bitwise_xor, "Bits set in one of them.", "commutative", kinds=INTEGERS
)
ShiftLeft = _declare(
    Binary, "shift_left", _shift_left, "Bits moved up by rhs < bits; 0 follows.", kinds=INTEGERS
)
ShiftRightSigned = _declare(
    Binary,
    "shift_right_signed",
    _shift_right_signed,
    "Bits moved down by rhs < bits; copies of the highest bit follow.",
    kinds=INTEGERS,
)
ShiftRight = _declare(
    Binary, "shift_right", _shift_right, "Bits moved down by rhs < bits; 0 follows.", kinds=INTEGERS
)
Neg = _declare(Unary, "neg", np.negative, "-x.")
Abs = _declare(Unary, "abs", np.abs, "Absolute value.")
Exp = _declare(Unary, "exp", np.exp, "e to the x.", kinds=FLOATS)
Exp2 = _declare(Unary, "exp2", np.exp2, "2 to the x.", kinds=FLOATS)
Log = _declare(Unary, "log", np.log, "Natural logarithm.", kinds=FLOATS)
Log2 = _declare(Unary, "log2", np.log2, "Logarithm to base 2.", kinds=FLOATS)
Tanh = _declare(Unary, "tanh", np.tanh, "Hyperbolic tangent.", kinds=FLOATS)
Erf = _declare(Unary, "erf", erf, "Error function.", kinds=FLOATS)
Sqrt = _declare(Unary, "sqrt", np.sqrt, "Square root.", kinds=FLOATS)
Rsqrt = _declare(Unary, "rsqrt", lambda x: 1 / np.sqrt(x), "1 / sqrt(x).", kinds=FLOATS)
Round = _declare(Unary, "round", _round, "Nearest integer, ties to even.")
Sigmoid = _declare(
    Unary, "sigmoid", lambda x: 1 / (1 + np.exp(-x)), "1 / (1 + exp(-x)).", kinds=FLOATS
)


class Fma(Pointwise, name="math.fma"):
    """x * y + z, rounded once where the machine can; ``fused``: once everywhere (f32 only)."""

    x: Value = operand()
    y: Value = operand()
    z: Value = operand()
    fused: bool = attribute(default=False)

    def reference(self, x: Any, y: Any, z: Any) -> Any:
        if self.fused and np.asarray(z).dtype == np.float32:  # the oracle computes in f64
            return fused_multiply_add(x, y, z)
        with np.errstate(all="ignore"):
            return x * y + z


class Fraction(Unary, name="math.fraction"):
    """x - floor(x), in [0, 1]; 0 for infinities. ``down``: rounded down (f32), as AVX-512 does."""

    down: bool = attribute(default=False)

    kinds = FLOATS

    def reference(self, x: Any) -> Any:
        if self.down and np.asarray(x).dtype == np.float32:  # the oracle computes in f64
            return fraction_below(x)
        with np.errstate(all="ignore"):
            return np.where(np.isinf(x), 0.0, x - np.floor(x))


class Scale2(Binary, name="math.scale2"):
    """lhs * 2**floor(rhs); exact unless it leaves the dtype's range; NaN if either is."""

    kinds = FLOATS

    def reference(self, lhs: Any, rhs: Any) -> Any:
        with np.errstate(all="ignore"):
            floor = np.floor(rhs)
            power = np.clip(np.where(np.isfinite(floor), floor, 0), -20000, 20000)
            scaled = np.ldexp(lhs, power.astype(np.int32))
            return np.where(np.isfinite(floor), scaled, lhs * np.exp2(floor))


class Larger(Binary, name="math.larger"):
    """lhs if lhs > rhs else rhs: the maximum of the machine, which lets rhs through if one is
    NaN."""

    def reference(self, lhs: Any, rhs: Any) -> Any:
        return np.where(np.greater(lhs, rhs), lhs, rhs)


class Smaller(Binary, name="math.smaller"):
    """lhs if lhs < rhs else rhs: the minimum of the machine, which lets rhs through if one is
    NaN."""

    def reference(self, lhs: Any, rhs: Any) -> Any:
        return np.where(np.less(lhs, rhs), lhs, rhs)


class Compare(Binary, name="math.compare"):
    """A comparison, ``relation`` one of lt le gt ge eq ne; false for NaN except ne."""

    relation: str = attribute()

    kinds = ANY
    RELATIONS: ClassVar[dict[str, Any]] = {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    }

    def infer(self) -> Type:
        self.require(self.relation in self.RELATIONS, "relation is lt, le, gt, ge, eq or ne")
        return with_dtype(super().infer(), BOOL)

    def reference(self, lhs: Any, rhs: Any) -> Any:
        return self.RELATIONS[self.relation](lhs, rhs)


class Select(Op, name="math.select", traits=("pure", "pointwise")):
    """Where ``condition`` holds ``lhs``, else ``rhs``."""

    condition: Value = operand()
    lhs: Value = operand()
    rhs: Value = operand()

    def infer(self) -> Type:
        condition, lhs, rhs = (v.type for v in self.operands)
        self.require(getattr(condition, "dtype", BOOL) == BOOL, "the condition must be bool")
        same = getattr(lhs, "dtype", None) == getattr(rhs, "dtype", None)
        self.require(same, "both choices must have one dtype")
        common = broadcast_types(self, [condition, lhs, rhs])
        return with_dtype(common, lhs.dtype) if not isinstance(lhs, IndexType) else lhs

    def reference(self, condition: Any, lhs: Any, rhs: Any) -> Any:
        return np.where(condition, lhs, rhs)


class Cast(Op, name="math.cast", traits=("pure", "pointwise")):
    """The value in another dtype, rounded to nearest even (floats), toward zero (to integers).
    ``asked``: by the program itself, not on another operation's way (passes/precision.py)."""

    x: Value = operand()
    dtype: DType = attribute()
    asked: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.x.type
        if isinstance(type_, IndexType):
            one = Layout(2)
            return RegisterType(self.dtype, one)
        return with_dtype(broadcast_types(self, [type_]), self.dtype)

    def reference(self, x: Any) -> Any:
        x = np.asarray(x)
        if self.dtype == BOOL:
            return x != 0
        if self.dtype.is_float:
            return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
        with np.errstate(all="ignore"):
            return x.astype(self.dtype.host)


class Const(Op, name="math.const", traits=("pure", "pointwise")):
    """A constant of a type: a rank-0 tensor, a stream without loops, a tile or an index."""

    value: float = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        type_ = self.type
        axes = type_.shape if isinstance(type_, TensorType) else getattr(type_, "axes", ())
        single = not axes and not isinstance(type_, BufferType | ScratchType)
        self.require(single, "the type must be a single number's, a tile or index")
        dtype = getattr(type_, "dtype", I64)
        self.require(dtype.holds(self.value), f"{self.value!r} is no {dtype}")
        return type_

    def reference(self) -> Any:
        dtype = getattr(self.type, "dtype", None)
        if dtype is not None and dtype.is_float:
            return np.asarray(self.value, dtype="float64")
        return np.asarray(self.value, dtype=dtype.host if dtype is not None else "int64")


class SizeValue(Op, name="math.size", traits=("pure", "pointwise")):
    """The run-time value of a size expression, as an integer of ``type`` (rank-0 tensor, or a
    stream without loops)."""

    size: Size = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        type_ = self.type
        fits = isinstance(type_, TensorType | StreamType) and type_.dtype.is_int
        axes = type_.shape if isinstance(type_, TensorType) else getattr(type_, "axes", ())
        self.require(fits and not axes, "the type must be a single integer's")
        return type_

    def reference_size(self, value: int) -> Any:
        return np.asarray(value, dtype="int64")
