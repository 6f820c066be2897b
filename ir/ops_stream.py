"""Operations on streams: source, repeat, reduce, scan, sink. A ``math`` op on streams is a map
node.

The abstract machine is that of the streaming SDPA paper (arXiv 2404.16629). A stream runs through
its loops in order, the last one fastest; its element is one value or a small tensor of named axes.
In the interpreter a stream is an array over loops + element axes, in that order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.ops_tensor import gathered
from tilewright.ir.reduction import IDENTITIES, identity_of, reduce_axis
from tilewright.ir.sizes import product
from tilewright.ir.types import Axis, StreamType, TensorType, Type

IDENTITY = IDENTITIES
Dims = tuple[tuple[str, ...], ...]


class StreamOp(Op, traits=("pure",)):
    """Base: checks that an operand is a stream."""

    def stream(self, value: Value) -> StreamType:
        self.require(isinstance(value.type, StreamType), "operands must be streams")
        assert isinstance(value.type, StreamType)
        return value.type

    def require_dims(self, dims: Dims, stream: StreamType, tensor: TensorType) -> None:
        """The axes named for a dimension multiply to its size; each is named at most once."""
        self.require(len(dims) == len(tensor.shape), "dims must name every dimension")
        self.require(stream.dtype == tensor.dtype, "dtypes must agree")
        sizes = {a.name: a.size for a in stream.axes}
        used = [a for dim in dims for a in dim]
        known = len(set(used)) == len(used) and set(used) <= set(sizes)
        self.require(known, "dims name unknown axes")
        for at, (dim, size) in enumerate(zip(dims, tensor.shape, strict=True)):
            given = product(sizes[a] for a in dim)
            self.require(given == size, f"axes of dimension {at} make {given} elements, not {size}")

    def element_axis(self, type_: StreamType, name: str) -> int:
        names = [a.name for a in type_.element]
        self.require(name in names, f"the element has no axis {name!r}")
        return len(type_.loops) + names.index(name)


def over_axes(array: Any, dims: Dims, type_: StreamType, sizes: dict[str, int]) -> Any:
    """An array whose dimensions consist of the axes ``dims``, viewed over all axes of a stream."""
    names = [a for dim in dims for a in dim]
    split = np.reshape(array, [sizes[a] for a in names])
    order = [a.name for a in type_.axes]
    have = [a for a in order if a in names]
    moved = np.transpose(split, [names.index(a) for a in have])
    view = moved.reshape([sizes[a] if a in names else 1 for a in order])
    return np.broadcast_to(view, [sizes[a] for a in order])


def over(array: Any, have: Sequence[Axis], want: Sequence[Axis], rest: int = 0) -> Any:
    """An array over the axes ``have`` (and ``rest`` more) viewed over ``want``, which has them all:
    size 1 along the others."""
    names, wanted = [a.name for a in have], [a.name for a in want]
    order = [names.index(n) for n in wanted if n in names]
    moved = np.transpose(array, [*order, *range(len(have), len(have) + rest)])
    given = iter(moved.shape)
    view = [next(given) if n in names else 1 for n in wanted]
    return moved.reshape([*view, *given])


class Source(StreamOp, name="stream.source"):
    """Reads a tensor in the order of the stream. ``dims`` names the axes that make up each
    dimension
    (several: mixed radix, outermost first). A loop that no dimension names reads the same again."""

    tensor: Value = operand()
    dims: Dims = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        given = self.tensor.type
        self.require(isinstance(given, TensorType), "a source reads a tensor")
        self.require(isinstance(self.type, StreamType), "type must be a stream")
        assert isinstance(given, TensorType) and isinstance(self.type, StreamType)
        used = [a for dim in self.dims for a in dim]
        missing = [a.name for a in self.type.element if a.name not in used]
        self.require(not missing, f"element axis {missing} is not in the tensor")
        self.require_dims(self.dims, self.type, given)
        return self.type

    def reference_axes(self, tensor: Any, sizes: dict[str, int]) -> Any:
        assert isinstance(self.type, StreamType)
        return over_axes(tensor, self.dims, self.type, sizes)


INDEXED = "*"  # in the dims of a gather: the next index operand says where


class Gather(StreamOp, name="stream.gather"):
    """Reads a tensor at computed positions, such as the rows of a table.

    ``dims`` has one entry for each dimension of the tensor: ``["*"]`` takes its position from the
    next index operand (a stream of integers, moved inside the dimension if it lies outside, one
    for every place of the element or for axes of it), ``["d"]`` runs along the element's axis d.
    """

    tensor: Value = operand()
    indices: tuple[Value, ...] = operand(rest=True)
    dims: Dims = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        given = self.tensor.type
        self.require(isinstance(given, TensorType), "a gather reads a tensor")
        self.require(isinstance(self.type, StreamType), "type must be a stream")
        assert isinstance(given, TensorType) and isinstance(self.type, StreamType)
        self.require(given.dtype == self.type.dtype, "dtypes must agree")
        single = all(len(dim) == 1 for dim in self.dims) and len(self.dims) == len(given.shape)
        self.require(single, "dims must have one name for every dimension")
        count = self.dims.count((INDEXED,))
        self.require(count == len(self.indices), f"dims has {count} indexed dimensions")
        for value in self.indices:
            index = self.stream(value)
            fits = index.dtype.is_int and set(index.element) <= set(self.type.element)
            self.require(fits, "an index is a stream of integers along axes of the element")
            self.require(index.loops in ((), self.type.loops), "indices must run in the same loops")
        sizes = {a.name: a.size for a in self.type.element}
        named = {d[0]: n for d, n in zip(self.dims, given.shape, strict=True) if d != (INDEXED,)}
        covered = {**named, **{a.name: a.size for a in self.index_element}}
        self.require(covered == sizes, "the named dimensions must be the element's axes")
        return self.type

    @property
    def index_element(self) -> tuple[Axis, ...]:
        """The element's axes along which indices differ."""
        return tuple(dict.fromkeys(a for v in self.indices for a in self.stream(v).element))

    def reference_axes(self, tensor: Any, *indices: Any, sizes: dict[str, int]) -> Any:
        assert isinstance(self.type, StreamType)
        given = list(zip(indices, self.indices, strict=True))
        names = [a.name for a in self.type.axes]
        at = []
        for (name,) in self.dims:
            if name == INDEXED:
                index, value = given.pop(0)
                at.append(over(index, self.stream(value).axes, self.type.axes))
            else:
                view = [sizes[name] if n == name else 1 for n in names]
                at.append(np.arange(sizes[name]).reshape(view))
        shape = tuple(sizes[n] for n in names)
        return np.broadcast_to(gathered(tensor, at), shape)


class Index(StreamOp, name="stream.index"):
    """The position on ``axis`` (a loop) at every element of the stream."""

    axis: str = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        self.require(isinstance(self.type, StreamType), "type must be a stream")
        assert isinstance(self.type, StreamType)
        self.require(self.axis in [a.name for a in self.type.axes], "axis must be one of the loops")
        self.require(self.type.dtype in (I32, I64), "positions are i64 or i32")
        return self.type

    def reference_axes(self, sizes: dict[str, int]) -> Any:
        assert isinstance(self.type, StreamType)
        order = [a.name for a in self.type.axes]
        view = [sizes[a] if a == self.axis else 1 for a in order]
        return np.broadcast_to(np.arange(sizes[self.axis]).reshape(view), [sizes[a] for a in order])


class Repeat(StreamOp, name="stream.repeat"):
    """Every element given ``size`` times, in a new innermost loop ``axis``."""

    x: Value = operand()
    axis: Axis = attribute()

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        names = [a.name for a in type_.axes]
        self.require(self.axis.name not in names, f"the stream already runs over {self.axis.name}")
        return StreamType((*type_.loops, self.axis), type_.element, type_.dtype)

    def reference_axes(self, x: Any, sizes: dict[str, int]) -> Any:
        at = len(self.stream(self.x).loops)
        wide = np.expand_dims(x, at)
        shape = list(wide.shape)
        shape[at] = sizes[self.axis.name]
        return np.broadcast_to(wide, shape)


class Contract(StreamOp, name="stream.contract", traits=("linear",)):
    """A map whose function is a sum of products over element axes ``axes``."""

    lhs: Value = operand()
    rhs: Value = operand()
    axes: tuple[str, ...] = attribute()

    def infer(self) -> Type:
        left, right = self.stream(self.lhs), self.stream(self.rhs)
        self.require(left.loops == right.loops, "streams must run in the same loops (repeat one)")
        self.require(left.dtype == right.dtype, "operands must have one dtype")
        for name in self.axes:
            one = left.axes[self.element_axis(left, name)]
            other = right.axes[self.element_axis(right, name)]
            self.require(one == other, f"axis {name!r} has two sizes")
        kept = [a for a in left.element if a.name not in self.axes]
        kept += [a for a in right.element if a.name not in self.axes and a not in kept]
        self.require(len({a.name for a in kept}) == len(kept), "one axis has two sizes")
        return StreamType(left.loops, tuple(kept), left.dtype)

    def reference(self, lhs: Any, rhs: Any) -> Any:
        left, right = self.stream(self.lhs), self.stream(self.rhs)
        out = self.stream(self.result)
        wide = np.result_type(lhs, rhs, np.float32)
        sides = [self._varying(x, t.axes) for x, t in ((lhs, left), (rhs, right))]
        names = list(dict.fromkeys(n for _, axes in sides for n in axes))
        letter = {name: chr(97 + i) for i, name in enumerate(names)}
        kept = [a.name for a in out.axes if a.name in letter]
        spell = ["".join(letter[n] for n in axes) for axes in (*(axes for _, axes in sides), kept)]
        with np.errstate(all="ignore"):
            equation = f"{spell[0]},{spell[1]}->{spell[2]}"
            operands = (x.astype(wide, copy=False) for x, _ in sides)
            result = np.einsum(equation, *operands, optimize=True)
        return self._over_all(result, kept, lhs, rhs)

    def _varying(self, array: Any, axes: Sequence[Axis]) -> tuple[Any, list[str]]:
        """An operand without the axes that it only repeats (views of step 0) and that are not
        summed over, and the names of the others: a product of matrices is one, in time and
        memory, though its streams have every place of a loop over rows and columns."""
        each = zip(axes, array.shape, array.strides, strict=True)
        drop = [n > 1 and not step and a.name not in self.axes for a, n, step in each]
        view = array[tuple(0 if dropped else slice(None) for dropped in drop)]
        return view, [a.name for a, dropped in zip(axes, drop, strict=True) if not dropped]

    def _over_all(self, result: Any, kept: Sequence[str], lhs: Any, rhs: Any) -> Any:
        """A result over the axes ``kept`` as a view over all."""
        pairs = (lhs, self.stream(self.lhs)), (rhs, self.stream(self.rhs))
        sizes = {a.name: n for x, t in pairs for a, n in zip(t.axes, x.shape, strict=True)}
        axes = [a.name for a in self.stream(self.result).axes]
        view = result.reshape([sizes[n] if n in kept else 1 for n in axes])
        return np.broadcast_to(view, [sizes[n] for n in axes])


class Fold(StreamOp, name="stream.fold"):
    """A map that reduces one element axis (``kind`` sum, max, min)."""

    x: Value = operand()
    kind: str = attribute()
    axis: str = attribute()

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        self.require(self.kind in IDENTITY, "kind is sum, max or min")
        self.element_axis(type_, self.axis)
        kept = tuple(a for a in type_.element if a.name != self.axis)
        return StreamType(type_.loops, kept, type_.dtype)

    def reference(self, x: Any) -> Any:
        return reduce_axis(x, self.kind, self.element_axis(self.stream(self.x), self.axis))


class Roll(StreamOp, name="stream.roll"):
    """A map that moves an element's values along its axis: out[i] = x[(i - shift) mod n]."""

    x: Value = operand()
    axis: str = attribute()
    shift: int = attribute()

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        self.element_axis(type_, self.axis)
        return type_

    def reference(self, x: Any) -> Any:
        return np.roll(x, self.shift, self.element_axis(self.stream(self.x), self.axis))


class Reduce(StreamOp, name="stream.reduce"):
    """Reduces the innermost loop; emits one element when the loop ends.

    With a second operand ``rescale`` (sums only) the state is multiplied by it before each element
    is added: state = state * rescale + x. It may be a stream of scalars.
    """

    x: Value = operand()
    rescale: tuple[Value, ...] = operand(rest=True)
    kind: str = attribute()
    axis: str = attribute()

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        self.require(self.kind in IDENTITY, "kind is sum, max or min")
        innermost = bool(type_.loops) and type_.loops[-1].name == self.axis
        self.require(innermost, f"{self.axis!r} must be the innermost loop")
        self.require(len(self.rescale) < 2, "takes at most one rescale stream")
        for value in self.rescale:
            scale = self.stream(value)
            self.require(self.kind == "sum", "only a sum can be rescaled")
            self.require(scale.loops == type_.loops and not scale.element, "rescale is a scalar")
        return StreamType(type_.loops[:-1], type_.element, type_.dtype)

    def reference(self, x: Any, *rescale: Any) -> Any:
        axis = len(self.stream(self.x).loops) - 1
        if not rescale:
            return reduce_axis(x, self.kind, axis)
        factor = rescale[0].reshape(rescale[0].shape + (1,) * (x.ndim - rescale[0].ndim))
        state = np.zeros(x.shape[:axis] + x.shape[axis + 1 :], dtype=x.dtype)
        # views: ``np.take`` would copy the whole of what a stream repeats for each of its elements
        steps = zip(np.moveaxis(factor, axis, 0), np.moveaxis(x, axis, 0), strict=True)
        with np.errstate(all="ignore"):
            for scale, element in steps:
                state = state * scale + element
        return state


class Scan(StreamOp, name="stream.scan"):
    """The running maximum (minimum, sum) over the innermost loop, and what it was before.

    ``blockwise`` promises that the program's results are the same if both are taken only once for
    any block of steps, as after its last and before its first.
    """

    x: Value = operand()
    kind: str = attribute()
    axis: str = attribute()
    blockwise: bool = attribute(default=False)

    def infer(self) -> tuple[Type, ...]:
        type_ = self.stream(self.x)
        self.require(self.kind in IDENTITY, "kind is sum, max or min")
        innermost = bool(type_.loops) and type_.loops[-1].name == self.axis
        self.require(innermost, f"{self.axis!r} must be the innermost loop")
        return (type_, type_)

    def reference(self, x: Any) -> Any:
        axis = len(self.stream(self.x).loops) - 1
        function = {"sum": np.add, "max": np.fmax, "min": np.fmin}[self.kind]
        with np.errstate(all="ignore"):
            running = function.accumulate(x, axis=axis)
        first = np.full_like(
            np.take(x, [0], axis) if x.shape[axis] else x, identity_of(self.kind, x.dtype)
        )
        previous = np.concatenate([first, running], axis)[tuple(slice(0, n) for n in x.shape)]
        return running, previous


class Sink(StreamOp, name="stream.sink"):
    """Writes a stream to a tensor; ``dims`` as for a source."""

    x: Value = operand()
    dims: Dims = attribute()
    type: Type = attribute()

    def infer(self) -> Type:
        type_ = self.stream(self.x)
        self.require(isinstance(self.type, TensorType), "type must be a tensor")
        assert isinstance(self.type, TensorType)
        used = {a for dim in self.dims for a in dim}
        self.require(all(a.name in used for a in type_.axes), "dims must use every axis")
        self.require_dims(self.dims, type_, self.type)
        return self.type

    def reference_axes(self, x: Any, sizes: dict[str, int]) -> Any:
        order = [a.name for a in self.stream(self.x).axes]
        names = [a for dim in self.dims for a in dim]
        moved = np.transpose(x, [order.index(a) for a in names])
        return moved.reshape([math.prod(sizes[a] for a in dim) for dim in self.dims])
