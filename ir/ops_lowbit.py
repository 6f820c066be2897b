"""Quantised values: what packed codes mean (tensor and stream level), and the tile operations that
take bits apart.

A quantised value is ``(decode(code) - zero) * scale``. Codes lie in 32-bit words as a ``Packing``
(ir/packing.py) says; scales and zeros lie beside them, one for each group and row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.ir.bit_patterns import from_bits, recut, to_bits
from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import BF16, BOOL, F32, I32, U8, DType
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
from tilewright.ir.ops_stream import Dims, StreamOp, over_axes
from tilewright.ir.ops_tensor import TensorOp
from tilewright.ir.packing import Packing
from tilewright.ir.sizes import Size
from tilewright.ir.types import RegisterType, StreamType, TensorType, Type

SCALES = ("e8m0", "f8e4m3")  # that scales in bytes may hold


def decoded(codes: Any, dtype: DType) -> Any:
    """What stored codes stand for: integers for themselves (zeros are in units of stored codes),
    floats and tables for their values."""
    return codes.astype(np.float64) if dtype.is_int else np.asarray(dtype.decode(codes), np.float64)


def dequantised(op: Any, words: Any, scales: Any, extra: tuple[Any, ...], k: int) -> Any:
    """The values [n, k] of packed codes: words [blocks, …] and scales [blocks, groups * lanes]."""
    packing, blocks = op.layout, words.shape[0]
    n = blocks * packing.lanes
    given = np.asarray(words, np.int32).reshape(packing.word_shape(n, k))
    values = decoded(packing.unpack(given, n, k), op.dtype)
    if op.signed:
        values = np.where(values >= 2 ** (packing.bits - 1), values - 2**packing.bits, values)

    if op.scale != F32:
        scales = op.scale.decode(np.asarray(scales).astype(np.uint8))

    def per_code(blocked: Any) -> Any:
        groups = np.asarray(blocked).reshape(packing.group_shape(n, k))
        return np.repeat(packing.unpack_groups(groups, n), packing.group, axis=1)[:, :k]

    if op.extra == "zeros":
        return (values - per_code(extra[0])) * per_code(scales)
    return (values - op.zero) * per_code(scales)


class Packed(Op):
    """What both forms of the operation share: attributes that say how codes lie."""

    packing: str
    dtype: DType
    extra: str
    scale: DType

    @cached_property
    def layout(self) -> Packing:
        return Packing.parse(self.packing)

    @property
    def words_type(self) -> TensorType:
        type_ = self.operands[0].type
        assert isinstance(type_, TensorType)
        return type_

    def check_packed(self, length: Size) -> None:
        """The operands are words, scales and what ``extra`` names, all of as many blocks, and as
        wide as ``length`` codes need."""
        self.require(self.extra in ("", "zeros", "sums"), "extra is '', 'zeros' or 'sums'")
        wanted = 2 + bool(self.extra)
        self.require(len(self.operands) == wanted, f"needs {wanted} operands")
        types = [x for x in (v.type for v in self.operands) if isinstance(x, TensorType)]
        self.require(len(types) == wanted, "operands are tensors")
        blocks = {x.shape[:1] for x in types}
        fits = len(blocks) == 1 and all(len(x.shape) == 2 for x in types)
        self.require(fits, "words, scales and what goes with them are [blocks, …]")
        self._check_dtypes([x.dtype for x in types])
        self._check_codes()
        known = length.constant
        if known is None:
            return
        groups = self.layout.groups(known)
        counts = [self.layout.chunks(known) * self.layout.words, groups, groups]
        for x, count in zip(types, counts, strict=False):
            columns = count * self.layout.lanes
            fits = x.shape[1].constant in (None, columns)
            self.require(fits, f"{known} codes need {columns} columns, not {x.shape[1]}")

    def _check_dtypes(self, given: list[DType]) -> None:
        words, scales, *rest = given
        self.require(words == I32, "words are i32")
        if self.scale == F32:
            self.require(scales.is_float and scales.addressable, "scales are floats")
        else:
            self.require(self.scale.name in SCALES, f"scale is f32, {' or '.join(SCALES)}")
            self.require(scales == U8, f"scales in {self.scale} are u8")
        for dtype in rest:
            number = dtype.addressable and dtype != BOOL
            fits = dtype == I32 if self.extra == "sums" else number
            self.require(fits, "zeros are numbers, sums are i32")

    def _check_codes(self) -> None:
        """The packing is one, and the dtype has as many bits."""
        try:
            bits = self.layout.bits
        except UnsupportedError as error:
            raise self.error(error.message) from None
        wide = self.dtype.is_int and bits <= self.dtype.bits <= 8
        fits = self.dtype != BOOL and (wide or bits == self.dtype.bits)
        self.require(fits, f"codes of {bits} bits are no {self.dtype}")


class Dequantize(TensorOp, Packed, name="tensor.dequantize"):
    """The values [lanes * blocks, length] in f32 of packed codes.

    ``words`` [blocks, chunks * words * lanes] as ``packing`` says, ``scales`` [blocks, groups *
    lanes]; ``extra`` names a third operand of the shape of scales: ``zeros`` (in units of stored
    codes) instead of the constant ``zero``, or ``sums`` (of each group's codes, i32), which changes
    nothing but lets a product with another zero go without forming them. Scales in bytes hold
    what ``scale`` says (e8m0, f8e4m3); ``signed`` integer codes are in two's complement.
    """

    words: Value = operand()
    scales: Value = operand()
    more: tuple[Value, ...] = operand(rest=True)
    packing: str = attribute()
    dtype: DType = attribute()
    length: Size = attribute()
    zero: int = attribute(default=0)
    extra: str = attribute(default="")
    scale: DType = attribute(default=F32)
    signed: bool = attribute(default=False)

    def infer(self) -> Type:
        self.check_packed(self.length)
        return TensorType((self.words_type.shape[0] * self.layout.lanes, self.length), F32)

    def reference_sized(self, words: Any, scales: Any, *rest: Any) -> Any:
        return dequantised(self, words, scales, rest[:-1], rest[-1][1])


class StreamDequantize(StreamOp, Packed, name="stream.dequantize"):
    """``tensor.dequantize`` as a stream over the rows ``dims[0]`` with elements along ``dims[1]``:
    a source that reads packed codes."""

    words: Value = operand()
    scales: Value = operand()
    more: tuple[Value, ...] = operand(rest=True)
    packing: str = attribute()
    dtype: DType = attribute()
    dims: Dims = attribute()
    type: Type = attribute()
    zero: int = attribute(default=0)
    extra: str = attribute(default="")
    scale: DType = attribute(default=F32)
    signed: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.type
        self.require(isinstance(type_, StreamType), "type must be a stream")
        assert isinstance(type_, StreamType)
        self.check_packed(self.length)
        names = [a.name for a in type_.axes]
        fits = [len(dim) <= 1 and set(dim) <= set(names) for dim in self.dims] == [True, True]
        self.require(fits, "dims are [[row axis], [element axis]]")
        element = tuple(a.name for a in type_.element)
        self.require(element == tuple(self.dims[1]), "the codes of a row are the element")
        self.require(type_.dtype == F32, "values are f32")
        rows = [a.size for a in type_.loops if a.name in self.dims[0]] or [Size.of(1)]
        held = self.words_type.shape[0] * self.layout.lanes
        self.require(rows == [held], f"there are {held} rows, not {rows[0]}")
        return type_

    @property
    def length(self) -> Size:
        assert isinstance(self.type, StreamType)
        return self.type.element[0].size if self.type.element else Size.of(1)

    def reference_axes(self, words: Any, scales: Any, *extra: Any, sizes: dict[str, int]) -> Any:
        assert isinstance(self.type, StreamType)
        k = sizes[self.dims[1][0]] if self.dims[1] else 1
        values = dequantised(self, words, scales, extra, k)
        return over_axes(values, self.dims, self.type, sizes)


class View(TileOp, name="tile.view", traits=("pure",)):
    """The same bits of the same lanes as another dtype under another layout.

    A lane's bits are those of its registers one after another, each lowest bit first; legal just if
    both tiles have the same lanes and the same number of bits in each. Costs nothing.
    """

    x: Value = operand()
    dtype: DType = attribute()
    layout: Layout = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        before = type_.layout.registers * type_.dtype.bits
        after = self.layout.registers * self.dtype.bits
        self.require(type_.layout.lanes == self.layout.lanes, "a view keeps the lanes")
        self.require(before == after, f"a view keeps the bits of a lane ({before}, not {after})")
        return RegisterType(self.dtype, self.layout)

    def reference(self, x: Any) -> Any:
        type_ = self.register(self.x)
        source, target = (
            tuple(np.moveaxis(np.array(layout.table()), -1, 0))
            for layout in (type_.layout, self.layout)
        )
        bits = to_bits(np.asarray(x), type_.dtype)[source]
        cut = recut(bits, type_.dtype.bits, self.layout.registers, self.dtype.bits)
        out = np.zeros(self.layout.shape, self.dtype.host)
        out[target] = from_bits(cut, self.dtype)
        return out


class Lookup(TileOp, name="tile.lookup", traits=("pure",)):
    """values[index mod their number] for every element; a power of two of values.

    The table lies in registers: a permutation of lanes, not a load.
    """

    index: Value = operand()
    values: tuple[float, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.index)
        count = len(self.values)
        self.require(type_.dtype == I32, "indices are i32")
        self.require(count > 0 and count & (count - 1) == 0, "a power of two of values")
        return RegisterType(F32, type_.layout)

    def reference(self, index: Any) -> Any:
        return np.asarray(self.values, np.float64)[np.asarray(index) & (len(self.values) - 1)]


class LookupHalves(TileOp, name="tile.lookup_halves", traits=("pure",)):
    """Every half of every word replaced by the bits of values[half mod their number] in bf16; a
    power of two of values, at most 64."""

    index: Value = operand()
    values: tuple[float, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.index)
        count = len(self.values)
        self.require(type_.dtype == I32, "halves come in words of i32")
        self.require(count & (count - 1) == 0 < count <= 64, "1, 2, 4 … or 64 values")
        return type_

    def reference(self, index: Any) -> Any:
        words = np.ascontiguousarray(np.asarray(index).astype(np.int32))
        at = words.view(np.uint16) & (len(self.values) - 1)
        return bf16_bits(self.values)[at].view(np.int32).reshape(words.shape)


def bf16_bits(values: Sequence[float]) -> npt.NDArray[np.uint16]:
    """Numbers as the bits of the nearest bf16."""
    wide = np.asarray(values, np.float32)
    return to_bits(wide, BF16).astype(np.uint16)


class LookupBytes(TileOp, name="tile.lookup_bytes", traits=("pure",)):
    """Every byte of every word replaced by values[byte]; 16 or 64 values, bytes below that."""

    index: Value = operand()
    values: tuple[int, ...] = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.index)
        self.require(type_.dtype == I32, "bytes come in words of i32")
        self.require(0 < len(self.values) <= 64, "at most 64 values")
        self.require(all(0 <= v < 256 for v in self.values), "values are unsigned bytes")
        return type_

    def reference(self, index: Any) -> Any:
        words = np.ascontiguousarray(np.asarray(index).astype(np.int32))
        at = np.minimum(words.view(np.uint8), len(self.values) - 1)
        return np.asarray(self.values, np.uint8)[at].view(np.int32).reshape(words.shape)
