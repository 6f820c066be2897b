"""Keys and values of a low-bit cache: what their codes mean (tensor and stream level).

A value is ``(code - zero) * scale``; words, scales and zeros lie as a ``CacheForm`` says.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from tilewright.ir.cache_form import CacheForm
from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import F32, I32, U8
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.ops_stream import Dims, StreamOp, over_axes
from tilewright.ir.ops_tensor import TensorOp
from tilewright.ir.sizes import Size, product
from tilewright.ir.types import StreamType, TensorType, Type


def cached_values(op: Cached, given: tuple[Any, ...], tokens: int) -> Any:
    """[batch, heads, tokens, width] of words, scales and, where zeros differ, zeros."""
    form = op.form
    codes = form.unpack(given[0], tokens).astype(np.float64)
    zero = form.spread(given[2], tokens) if op.zeros else op.zero
    return (codes - zero) * form.spread(given[1], tokens)


class Cached(Op):
    """What both forms of the operation share: how codes, scales and zeros lie."""

    tokens: str
    bits: int
    by: str
    group: int
    zero: int
    zeros: bool

    @property
    def channels(self) -> int:
        raise NotImplementedError

    @cached_property
    def form(self) -> CacheForm:
        return CacheForm(self.tokens, self.bits, self.channels, self.by, self.group)

    @property
    def counts_tokens(self) -> bool:
        """Whether the last operand is there for its length only: no other one has that of the
        tokens."""
        return self.by == "channel"

    def operand_type(self, at: int) -> TensorType:
        type_ = self.operands[at].type
        self.require(isinstance(type_, TensorType), "operands are tensors")
        assert isinstance(type_, TensorType)
        return type_

    def check_cached(self, batch: Size, heads: Size, length: Size) -> None:
        """Operands are words, scales, then zeros if they differ and what counts tokens."""
        try:
            form = self.form
        except UnsupportedError as error:
            raise self.error(error.message) from None
        wanted = 2 + self.zeros + self.counts_tokens
        self.require(len(self.operands) == wanted, f"needs {wanted} operands")
        words, scales = self.operand_type(0), self.operand_type(1)
        lead = (batch, heads)
        fits = words.dtype == I32 and len(words.shape) == 4 and words.shape[:2] == lead
        self.require(fits, f"words are i32 [{batch}, {heads}, rows, {form.columns}]")
        self.require(words.shape[3] == Size.of(form.columns), f"words have {form.columns} columns")
        self.require(scales.dtype.is_float and scales.dtype.addressable, "scales are floats")
        self._check_scales(scales, lead, length)
        if self.zeros:
            self.require(self.operand_type(2) == scales, "zeros look like scales")
        if self.counts_tokens:
            self.require(self.operand_type(-1) == TensorType((length,), U8), "counts are u8")

    def _check_scales(self, scales: TensorType, lead: tuple[Size, Size], length: Size) -> None:
        form = self.form
        self.require(len(scales.shape) == 4 and scales.shape[:2] == lead, "scales are like words")
        if self.by == "token":
            wanted = (Size.of(form.channel_groups), length)
            self.require(scales.shape[2:] == wanted, f"scales end in {wanted[0]} x {length}")
        else:
            self.require(scales.shape[3] == Size.of(form.width), f"there are {form.width} channels")


class CachedTensor(TensorOp, Cached, name="tensor.cached"):
    """The values [batch, heads, length, width] in f32 of cached keys or values.

    Operands: words and scales as CacheForm says, zeros of the shape of scales if ``zeros`` (else
    the constant ``zero``), both in units of codes; with scales by channel a u8 tensor [length].
    """

    words: Value = operand()
    scales: Value = operand()
    more: tuple[Value, ...] = operand(rest=True)
    tokens: str = attribute()
    bits: int = attribute()
    by: str = attribute()
    group: int = attribute()
    length: Size = attribute()
    width: int = attribute()
    zero: int = attribute(default=0)
    zeros: bool = attribute(default=False)

    @property
    def channels(self) -> int:
        return self.width

    def infer(self) -> Type:
        shape = self.operand_type(0).shape
        self.require(len(shape) == 4, "words have four dimensions")
        self.check_cached(shape[0], shape[1], self.length)
        return TensorType((*shape[:2], self.length, Size.of(self.width)), F32)

    def reference_sized(self, *given: Any) -> Any:
        return cached_values(self, given[:-1], given[-1][2])


class CachedStream(StreamOp, Cached, name="stream.cached"):
    """``tensor.cached`` as a stream: a source whose element is a token's channels. ``dims`` names
    the axes of batch, heads, tokens and channels."""

    words: Value = operand()
    scales: Value = operand()
    more: tuple[Value, ...] = operand(rest=True)
    tokens: str = attribute()
    bits: int = attribute()
    by: str = attribute()
    group: int = attribute()
    dims: Dims = attribute()
    type: Type = attribute()
    zero: int = attribute(default=0)
    zeros: bool = attribute(default=False)

    @property
    def channels(self) -> int:
        assert isinstance(self.type, StreamType)
        return (self.type.element[0].size.constant or 0) if self.type.element else 1

    def infer(self) -> Type:
        type_ = self.type
        self.require(isinstance(type_, StreamType) and type_.dtype == F32, "a stream of f32")
        assert isinstance(type_, StreamType)
        sizes = {a.name: a.size for a in type_.axes}
        known = len(self.dims) == 4 and all(x in sizes for dim in self.dims for x in dim)
        self.require(known, "dims are the axes of batch, heads, tokens and channels")
        element = tuple(a.name for a in type_.element)
        self.require(element == tuple(self.dims[3]), "a token's channels are the element")
        self.require(len(self.dims[2]) <= 1, "tokens are one axis")
        batch, heads, length, _ = (product(sizes[x] for x in dim) for dim in self.dims)
        self.check_cached(batch, heads, length)
        return type_

    def reference_axes(self, *given: Any, sizes: dict[str, int]) -> Any:
        assert isinstance(self.type, StreamType)
        tokens = sizes[self.dims[2][0]] if self.dims[2] else 1
        return over_axes(cached_values(self, given, tokens), self.dims, self.type, sizes)
