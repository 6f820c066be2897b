"""Operations on whole tensors: contraction, reduction, shape changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.ir.broadcast import broadcast_types
from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import F32, F64, DType
from tilewright.ir.reduction import IDENTITIES, reduce_axis
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import TensorType, Type


class TensorOp(Op, traits=("pure",)):
    """Base: checks that operands are tensors."""

    def tensor(self, value: Value) -> TensorType:
        self.require(isinstance(value.type, TensorType), "operands must be tensors")
        assert isinstance(value.type, TensorType)
        return value.type

    def axis_of(self, axis: object, rank: int) -> int:
        good = isinstance(axis, int) and -rank <= axis < rank
        self.require(good, f"axis {axis} is not a dimension of a rank-{rank} tensor")
        assert isinstance(axis, int)
        return axis % rank


class Contract(TensorOp, name="tensor.contract", traits=("linear",)):
    """Sum of products over shared axes, written as in einsum.

    ``tensor.contract %q, %k {equation = "hnd,hmd->hnm"}``. The result has the dtype of the
    operands.
    """

    lhs: Value = operand()
    rhs: Value = operand()
    equation: str = attribute()

    def letters(self) -> tuple[str, str, str]:
        sides = self.equation.replace(" ", "").split("->")
        self.require(len(sides) == 2 and sides[0].count(",") == 1, "equation is 'ab,bc->ac'")
        left, right = sides[0].split(",")
        return left, right, sides[1]

    def extents(self) -> dict[str, Size]:
        """The size that each letter stands for."""
        left, right, _ = self.letters()
        sizes = *self.tensor(self.lhs).shape, *self.tensor(self.rhs).shape
        return dict(zip(left + right, sizes, strict=True))

    def infer(self) -> Type:
        left, right, out = self.letters()
        sizes: dict[str, Size] = {}
        for letters, value in ((left, self.lhs), (right, self.rhs)):
            shape = self.tensor(value).shape
            fits = len(letters) == len(shape) == len(set(letters))
            self.require(fits, f"{letters!r} must name each dimension of {value.type} once")
            for letter, size in zip(letters, shape, strict=True):
                known = sizes.get(letter, size)
                message = f"sizes {known} and {size} of {letter!r} differ"
                self.require(known == size, message)
                sizes[letter] = size
        named = all(x.isascii() and x.isalpha() for x in sizes)
        self.require(named, "dimensions are named by letters")
        self.require(all(x in sizes for x in out), "an output letter occurs in no operand")
        self.require(len(set(out)) == len(out), "an output letter occurs twice")
        dtypes = {self.tensor(v).dtype for v in self.operands}
        self.require(len(dtypes) == 1, "operands must have one dtype (use math.cast)")
        return TensorType(tuple(sizes[x] for x in out), dtypes.pop())

    def reference(self, lhs: Any, rhs: Any) -> Any:
        wide = np.result_type(lhs, rhs, np.float32)
        with np.errstate(all="ignore"):
            return np.einsum(self.equation, lhs.astype(wide), rhs.astype(wide), optimize=True)


class Reduce(TensorOp, name="tensor.reduce"):
    """Reduction over one axis (``kind`` sum, max or min); the axis stays with size 1 if
    ``keep``."""

    x: Value = operand()
    kind: str = attribute()
    axis: int = attribute()
    keep: bool = attribute(default=False)

    def infer(self) -> Type:
        self.require(self.kind in IDENTITIES, "kind is sum, max or min")
        type_ = self.tensor(self.x)
        axis = self.axis_of(self.axis, len(type_.shape))
        kept = (Size.of(1),) if self.keep else ()
        return TensorType(type_.shape[:axis] + kept + type_.shape[axis + 1 :], type_.dtype)

    def reference(self, x: Any) -> Any:
        return reduce_axis(x, self.kind, self.axis, self.keep)


class Softmax(TensorOp, name="tensor.softmax"):
    """exp(x - max) / sum(exp(x - max)) over ``axis``. With ``safe`` a row whose elements are all
    -inf gives zeros (torch's scaled_dot_product_attention), else NaN (torch.softmax)."""

    x: Value = operand()
    axis: int = attribute()
    safe: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        self.axis_of(self.axis, len(type_.shape))
        self.require(type_.dtype.is_float, "softmax needs floats")
        return type_

    def reference(self, x: Any) -> Any:
        with np.errstate(all="ignore"):
            top = np.max(x, axis=self.axis, keepdims=True, initial=-np.inf)
            e = np.exp(x - top)
            out = e / np.sum(e, axis=self.axis, keepdims=True)
            return np.where(top == -np.inf, 0.0, out) if self.safe else out


class Transpose(TensorOp, name="tensor.transpose"):
    """Dimensions in the order ``permutation``."""

    x: Value = operand()
    permutation: tuple[int, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        fits = sorted(self.permutation) == list(range(len(type_.shape)))
        self.require(fits, f"permutation must order {len(type_.shape)} dimensions")
        return TensorType(tuple(type_.shape[p] for p in self.permutation), type_.dtype)

    def reference(self, x: Any) -> Any:
        return np.transpose(x, self.permutation)


class Reshape(TensorOp, name="tensor.reshape"):
    """The same elements in row-major order under another shape."""

    x: Value = operand()
    shape: tuple[Size, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        shape = tuple(Size.of(s) for s in self.shape)
        self.require(all(s.constant is None or s.constant >= 0 for s in shape), "negative size")
        fits = product(shape) == product(type_.shape)
        self.require(fits, f"{product(shape)} elements wanted, {product(type_.shape)} given")
        return TensorType(shape, type_.dtype)

    def reference_sized(self, x: Any, shape: tuple[int, ...]) -> Any:
        return np.reshape(x, shape)


class Broadcast(TensorOp, name="tensor.broadcast"):
    """Dimensions of size 1 widened (and new ones put in front) to ``shape``."""

    x: Value = operand()
    shape: tuple[Size, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        shape = tuple(Size.of(s) for s in self.shape)
        tail = shape[len(shape) - len(type_.shape) :] if type_.shape else ()
        fits = len(tail) == len(type_.shape) and all(
            a in (b, Size.of(1)) for a, b in zip(type_.shape, tail, strict=True)
        )
        self.require(fits, f"cannot widen to {' x '.join(map(str, shape))}")
        return TensorType(shape, type_.dtype)

    def reference_sized(self, x: Any, shape: tuple[int, ...]) -> Any:
        return np.broadcast_to(x, shape)


class Iota(TensorOp, name="tensor.iota"):
    """0, 1, 2, … along ``axis`` of a tensor of ``type`` (an integer dtype)."""

    axis: int = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        good = isinstance(self.type, TensorType) and self.type.dtype.is_int
        self.require(good, "type must be a tensor of integers")
        assert isinstance(self.type, TensorType)
        self.axis_of(self.axis, len(self.type.shape))
        return self.type

    def reference_sized(self, shape: tuple[int, ...]) -> Any:
        view = [1] * len(shape)
        view[self.axis] = shape[self.axis]
        return np.broadcast_to(np.arange(shape[self.axis]).reshape(view), shape)


class Roll(TensorOp, name="tensor.roll"):
    """Elements moved ``shift`` places along ``axis``, those past the end back to the start:
    out[i] = x[(i - shift) mod n] (torch.roll)."""

    x: Value = operand()
    axis: int = attribute()
    shift: int = attribute()

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        self.axis_of(self.axis, len(type_.shape))
        return type_

    def reference(self, x: Any) -> Any:
        return np.roll(x, self.shift, self.axis)


class Slice(TensorOp, name="tensor.slice"):
    """Elements ``start`` to ``stop`` (not included) along ``axis``, whose size is a number."""

    x: Value = operand()
    axis: int = attribute()
    start: int = attribute()
    stop: int = attribute()

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        axis = self.axis_of(self.axis, len(type_.shape))
        size = type_.shape[axis].constant
        inside = size is not None and 0 <= self.start <= self.stop <= size
        self.require(inside, f"0 <= start <= stop <= {type_.shape[axis]}, a number, must hold")
        shape = list(type_.shape)
        shape[axis] = Size.of(self.stop - self.start)
        return TensorType(tuple(shape), type_.dtype)

    def reference(self, x: Any) -> Any:
        return np.take(x, range(self.start, self.stop), self.axis)


class Concat(TensorOp, name="tensor.concat"):
    """Tensors one after another along ``axis``."""

    parts: tuple[Value, ...] = operand(rest=True)
    axis: int = attribute()

    def infer(self) -> Type:
        self.require(bool(self.parts), "needs at least one tensor")
        types = [self.tensor(v) for v in self.parts]
        axis = self.axis_of(self.axis, len(types[0].shape))
        rest = {(t.dtype, len(t.shape), t.shape[:axis], t.shape[axis + 1 :]) for t in types}
        self.require(len(rest) == 1, "tensors must agree in dtype and all other dimensions")
        total = Size()
        for type_ in types:
            total = total + type_.shape[axis]
        shape = (*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])
        return TensorType(shape, types[0].dtype)

    def reference(self, *parts: Any) -> Any:
        return np.concatenate(parts, self.axis)


class Gather(TensorOp, name="tensor.gather"):
    """``x[i0, i1, …]``: one integer tensor for every dimension of x, broadcast together.

    Indices are positions from 0; one outside of the dimension reads the nearest element inside
    (what a negative index means is the frontend's business).
    """

    x: Value = operand()
    indices: tuple[Value, ...] = operand(rest=True)

    def infer(self) -> Type:
        type_ = self.tensor(self.x)
        self.require(len(self.indices) == len(type_.shape) > 0, "one index for every dimension")
        whole = [self.tensor(v) for v in self.indices]
        self.require(all(t.dtype.is_int for t in whole), "indices must be integers")
        common = broadcast_types(self, list(whole))
        assert isinstance(common, TensorType)
        return TensorType(common.shape, type_.dtype)

    def reference(self, x: Any, *indices: Any) -> Any:
        return gathered(x, indices)


def gathered(x: Any, indices: Sequence[Any]) -> Any:
    """NumPy's x[indices] with every index moved inside its dimension; zeros if x is empty."""
    if x.size == 0:
        return np.zeros(np.broadcast_shapes(*(np.shape(i) for i in indices)), x.dtype)
    inside = [np.clip(i, 0, n - 1).astype(np.int64) for i, n in zip(indices, x.shape, strict=True)]
    return x[tuple(inside)]


def accumulator(dtype: DType) -> DType:
    """The dtype in which sums of ``dtype`` are kept."""
    return F64 if dtype == F64 else F32
