"""Operations of tile programs on whole blocks, which a back end shares out among threads itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BOOL, I32, I64, DType
from tilewright.ir.layout import Layout, merge_digits
from tilewright.ir.ops_index import TileOp
from tilewright.ir.packing import Packing
from tilewright.ir.types import INDEX, RegisterType, Type


class Product(TileOp, name="tile.product", traits=("pure",)):
    """acc[m, n] + sum over k of a[m, k] * b[k, n], kept in the dtype of acc; all in one lane.

    a and b have one dtype; their products are added up in the dtype of acc.
    """

    acc: Value = operand()
    a: Value = operand()
    b: Value = operand()

    def infer(self) -> Type:
        acc, a, b = (self.register(v) for v in self.operands)
        self.require(len(acc.shape) == len(a.shape) == len(b.shape) == 2, "all are matrices")
        fits = acc.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
        self.require(fits, "acc is [m, n], a is [m, k], b is [k, n]")
        self.require(a.dtype == b.dtype, "a and b must have one dtype")
        self.require(all(x.layout.lanes == 1 for x in (acc, a, b)), "whole blocks lie in one lane")
        return acc

    def reference(self, acc: Any, a: Any, b: Any) -> Any:
        with np.errstate(all="ignore"):
            return acc + a.astype(acc.dtype) @ b.astype(acc.dtype)


class Integer(TileOp, name="tile.integer", traits=("pure",)):
    """The number of a tile of one i64 as a run-time integer."""

    x: Value = operand()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        single = set(type_.shape) <= {1}  # its lanes hold copies
        self.require(single and type_.dtype == I64, "needs one i64")
        return INDEX

    def reference(self, x: Any) -> Any:
        return np.asarray(x).item()


class Scatter(TileOp, name="tile.scatter", traits=("writes",)):
    """Writes buffer[offset + offsets] = value where ``inside`` holds: one element per element of
    the i64 tile ``offsets``, no two of them at one place."""

    value: Value = operand()
    target: Value = operand()
    offset: Value = operand()
    offsets: Value = operand()
    inside: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        value, offsets = self.register(self.value), self.register(self.offsets)
        self.require_indices((self.offset,))
        self.require(value.dtype == self.memory(self.target).dtype, "dtypes must agree")
        self.require(offsets.dtype == I64, "offsets must be i64")
        self.require(self.register(self.inside).dtype == BOOL, "inside must be bool")
        same = value.layout == offsets.layout == self.register(self.inside).layout
        self.require(same, "tiles are of one layout")
        return ()


class LastOf(TileOp, name="tile.last_of", traits=("reads", "writes")):
    """1 for the last of ``count`` work items that come here with one place of ``counters``, 0 for
    those before it, whatever their order is.

    What any of them stored before it came can be read by the last one; nothing else in a program
    tells work items about each other. The place holds 0 before the first and after the last.
    """

    counters: Value = operand()
    at: tuple[Value, ...] = operand(rest=True)
    count: int = attribute()

    def infer(self) -> Type:
        type_ = self.memory(self.counters)
        self.require(type_.dtype == I32, "counters must be i32")
        self.require(len(self.at) == len(type_.shape), "one index per dimension")
        self.require_indices(self.at)
        self.require(self.count > 0, "count must be positive")
        return INDEX


class Unpack(TileOp, name="tile.unpack", traits=("pure",)):
    """The codes of packed words as numbers: chunk i of ``packing`` lies at place i of the words
    along a dimension, its codes at i * chunk, i * chunk + 1, … there.

    ``words`` has an i32 tile for every word of a chunk. Whole blocks lie in one lane, row by row;
    in many lanes every lane has the codes of its own words, in any order of its registers.
    """

    words: tuple[Value, ...] = operand(rest=True)
    packing: str = attribute()
    dim: int = attribute()
    dtype: DType = attribute()
    layout: Layout = attribute()

    @property
    def form(self) -> Packing:
        """How codes lie in the words of a chunk."""
        return Packing.parse(self.packing)

    def infer(self) -> Type:
        types, form = {self.register(v) for v in self.words}, self.form
        self.require(len(types) == 1, "all tiles must have one type")
        self.require(len(self.words) == form.words, f"a chunk of {form} has {form.words} words")
        words = types.pop()
        self.require(words.dtype == I32, "words are i32")
        self.require(len(words.shape) == 2, "tiles are matrices")
        self.require_dim(self.dim, words.layout)
        self.require(self.dtype.is_float, "codes become floats")
        shape = list(words.shape)
        shape[self.dim] *= form.chunk
        self.require(self.layout.shape == tuple(shape), f"codes are {shape}")
        whole = all(x == Layout(2).local(*x.shape) for x in (words.layout, self.layout))
        own = self._own_words(words.layout)
        self.require(own if words.layout.lanes > 1 else whole, "lanes have codes of other words")
        return RegisterType(self.dtype, self.layout)

    def _own_words(self, words: Layout) -> bool:
        """Whether every lane has all codes of its own words."""
        lanes = self.layout.digits()[1]
        steps = [self.form.chunk if d == self.dim else 1 for d, _, _ in lanes]
        whole = all(digit[1] % step == 0 for digit, step in zip(lanes, steps, strict=True))
        above = [(d, n // step, size) for (d, n, size), step in zip(lanes, steps, strict=True)]
        return whole and merge_digits(above) == words.digits()[1]

    def reference(self, *words: Any) -> Any:
        codes = self.form.codes(np.stack(words).astype(np.int32).view(np.uint32))
        return np.moveaxis(codes, 0, self.dim + 1).reshape(self.layout.shape).astype(np.float64)
