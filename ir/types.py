"""The types of values at the three levels, each with its textual form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tilewright.ir.dtypes import DType
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size, SizeLike, product


def _dim(size: Size) -> str:
    text = str(size)
    return text if text.isalnum() else f"({text})"


def _dims(shape: tuple[Size, ...], dtype: DType) -> str:
    return " x ".join([_dim(s) for s in shape] + [str(dtype)])


@dataclass(frozen=True)
class TensorType:
    """A tensor: sizes outermost first, and a dtype."""

    shape: tuple[Size, ...]
    dtype: DType

    @staticmethod
    def of(shape: Sequence[SizeLike], dtype: DType) -> TensorType:
        return TensorType(tuple(Size.of(s) for s in shape), dtype)

    def __str__(self) -> str:
        return f"tensor<{_dims(self.shape, self.dtype)}>"


@dataclass(frozen=True)
class Axis:
    """A named axis of the iteration space with its size."""

    name: str
    size: Size

    def __str__(self) -> str:
        return f"{self.name}={self.size}"


@dataclass(frozen=True)
class StreamType:
    """A stream: its elements come in the order of the loops, each a small tensor over
    ``element``."""

    loops: tuple[Axis, ...]
    element: tuple[Axis, ...]
    dtype: DType

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.loops + self.element

    def __str__(self) -> str:
        loops = ", ".join(map(str, self.loops))
        element = " x ".join([str(a) for a in self.element] + [str(self.dtype)])
        return f"stream<{loops}; {element}>"


@dataclass(frozen=True)
class BufferType:
    """Memory of the caller: sizes, dtype; strides are run-time values, ``unit`` marks stride one.

    ``unit`` is the dimension whose stride is known to be one element, or -1.
    """

    shape: tuple[Size, ...]
    dtype: DType
    unit: int = -1

    def __str__(self) -> str:
        return f"buffer<{_dims(self.shape, self.dtype)}, unit {self.unit}>"


@dataclass(frozen=True)
class ScratchType:
    """Memory of one worker, contiguous, row-major, of constant size."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        total = product(self.shape).constant
        assert total is not None
        return -(-total * self.dtype.bits // 8)

    def __str__(self) -> str:
        return f"scratch<{' x '.join([str(s) for s in self.shape] + [str(self.dtype)])}>"


SWIZZLED_BYTES = 16  # pieces of a row that a swizzle moves as a whole
LINE_BYTES = 128  # all banks of shared memory once


@dataclass(frozen=True)
class SharedType(ScratchType):
    """Memory of a block, contiguous, row-major, of constant size, that all its lanes share.

    ``swizzle`` (0, 2, 4 or 8) says where an element's bits lie, not what programs mean: the pieces
    of 16 bytes of a row change places, piece p goes to p XOR (line mod swizzle), so that lanes that
    read one piece of several rows meet other banks. Rows shorter than the 128 bytes of all banks
    share a line. That is also how the bulk copy engine swizzles rows of up to 128 bytes.
    """

    swizzle: int = 0

    def __str__(self) -> str:
        plain = super().__str__().removeprefix("scratch").removesuffix(">")
        return f"shared{plain}, swizzle {self.swizzle}>" if self.swizzle else f"shared{plain}>"

    @property
    def rows_per_line(self) -> int:
        """How many rows lie in the 128 bytes of all banks."""
        return max(1, LINE_BYTES // max(1, self.shape[-1] * self.dtype.bits // 8))

    def fits_swizzle(self, swizzle: int) -> bool:
        """Whether rows consist of so many pieces, once or several times (0: always)."""
        row = self.shape[-1] * self.dtype.bits if self.shape else 0
        return swizzle == 0 or (swizzle in (2, 4, 8) and row % (swizzle * SWIZZLED_BYTES * 8) == 0)

    def place(self, row: int, column: int) -> int:
        """The byte of an element: ``row`` counts through all dimensions but the last."""
        size = self.dtype.bits // 8
        piece, inside = divmod(column * size, SWIZZLED_BYTES)
        if self.swizzle:
            piece ^= row // self.rows_per_line % self.swizzle
        return row * self.shape[-1] * size + piece * SWIZZLED_BYTES + inside


@dataclass(frozen=True)
class RegisterType:
    """A tile held in registers of lanes: which element lies where is the layout's business."""

    dtype: DType
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def __str__(self) -> str:
        dims = " x ".join([str(s) for s in self.shape] + [str(self.dtype)])
        return f"reg<{dims}, {self.layout}>"


@dataclass(frozen=True)
class IndexType:
    """A run-time integer of 64 bits: a size, a position, a loop counter."""

    def __str__(self) -> str:
        return "index"


Type = TensorType | StreamType | BufferType | ScratchType | RegisterType | IndexType
INDEX = IndexType()


def with_dtype(type_: Type, dtype: DType) -> Type:
    """The same type with other elements."""
    if isinstance(type_, IndexType):
        return type_
    return replace(type_, dtype=dtype)


def substitute_sizes(type_: Type, values: Mapping[str, SizeLike]) -> Type:
    """The type with size names replaced."""
    if isinstance(type_, TensorType | BufferType):
        return replace(type_, shape=tuple(s.substitute(values) for s in type_.shape))
    if isinstance(type_, StreamType):
        return replace(
            type_,
            loops=tuple(Axis(a.name, a.size.substitute(values)) for a in type_.loops),
            element=tuple(Axis(a.name, a.size.substitute(values)) for a in type_.element),
        )
    return type_
