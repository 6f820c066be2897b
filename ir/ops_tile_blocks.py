"""Operations of tile programs on whole blocks, which a back end shares out among threads itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BOOL, I32, I64
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
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


class Interleave(TileOp, name="tile.interleave", traits=("pure",)):
    """Tiles of one type, a power of two of them, in turn along a dimension: n tiles [m, k] give
    [m * n, k] with row i * n + j from row i of tile j, or likewise [m, k * n].

    Whole blocks lie in one lane, row by row; of tiles in many lanes every lane puts its own
    elements side by side."""

    parts: tuple[Value, ...] = operand(rest=True)
    dim: int = attribute()

    def infer(self) -> Type:
        types, count = {self.register(v) for v in self.parts}, len(self.parts)
        self.require(len(types) == 1, "all tiles must have one type")
        self.require(count & (count - 1) == 0, "a power of two tiles")
        type_ = types.pop()
        self.require_dim(self.dim, type_.layout)
        shape = list(type_.shape)
        self.require(len(shape) == 2, "tiles are matrices")
        if type_.layout.lanes > 1:
            beside = type_.layout.local(*(count if d == self.dim else 1 for d in range(2)))
            return RegisterType(type_.dtype, beside)
        whole = type_.layout == Layout(2).local(*shape)
        self.require(whole, "whole blocks lie in one lane, row by row")
        shape[self.dim] *= count
        return RegisterType(type_.dtype, Layout(2).local(*shape))

    def reference(self, *parts: Any) -> Any:
        shape = list(parts[0].shape)
        shape[self.dim] *= len(parts)
        return np.stack(parts, axis=self.dim + 1).reshape(shape)
