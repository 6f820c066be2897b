"""Operations of tile programs on whole blocks that sort and gather: rows of memory that a tile
names, running sums, other shapes, and every other column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import I64
from tilewright.ir.layout import Layout
from tilewright.ir.layout_algebra import divide
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import RegisterType, Type


class LoadRows(TileOp, name="tile.load_rows", traits=("reads",)):
    """out[m, n] = source[rows[m, 0], at + n] of a matrix in memory; all in one lane.

    ``rows`` is a tile [m, 1] of i64. With ``dim`` 1 rows of memory are columns of the tile:
    out[n, m] = source[rows[0, m], at + n]. ``rest`` is ``at``, and the limit from which on
    positions are read as zero if there is one.
    """

    source: Value = operand()
    rows: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    layout: Layout = attribute()
    dim: int = attribute(default=0)

    def infer(self) -> Type:
        memory, rows = self.memory(self.source), self.register(self.rows)
        self.require_dim(self.dim, self.layout)
        self.require(len(memory.shape) == 2, "reads rows of a matrix")
        self.require_indices(self.rest)
        self.require(len(self.rest) in (1, 2), "needs a start, and a limit if there is one")
        wanted = list(self.layout.collapse(1 - self.dim).shape)
        self.require(rows.dtype == I64 and list(rows.shape) == wanted, f"rows must be i64 {wanted}")
        single = self.layout.rank == 2 and self.layout.lanes == rows.layout.lanes == 1
        self.require(single, "whole blocks lie in one lane")
        return RegisterType(memory.dtype, self.layout)


class Scan(TileOp, name="tile.scan", traits=("pure",)):
    """Running sums along a tile dimension, each with its own number."""

    x: Value = operand()
    dim: int = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        self.require_dim(self.dim, type_.layout)
        return type_

    def reference(self, x: Any) -> Any:
        return np.cumsum(x, axis=self.dim, dtype=x.dtype)


class Reshape(TileOp, name="tile.reshape", traits=("pure",)):
    """The same elements in row-major order as a tile of another shape; all in one lane."""

    x: Value = operand()
    layout: Layout = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        rank, shape = type_.layout.rank, type_.shape
        plain = type_.layout == Layout(rank).local(*shape)
        plain = plain and self.layout == Layout(self.layout.rank).local(*self.layout.shape)
        self.require(plain, "whole blocks lie in one lane, row by row")
        same = math.prod(shape) == math.prod(self.layout.shape)
        self.require(same, f"the layout must have {math.prod(shape)} elements")
        return RegisterType(type_.dtype, self.layout)

    def reference(self, x: Any) -> Any:
        return np.reshape(x, self.layout.shape)


class Alternate(TileOp, name="tile.alternate", traits=("pure",)):
    """Every other column of a tile, from column ``at`` (0 or 1) on: [m, 2n] -> [m, n]."""

    x: Value = operand()
    at: int = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        columns = type_.shape[1] if len(type_.shape) == 2 else 1
        self.require(columns % 2 == 0, "needs a matrix with an even number of columns")
        self.require(self.at in (0, 1), "at is 0 or 1")
        half = divide(type_.layout, Layout(2).local(1, 2))
        self.require(half is not None, "neighbouring columns lie in one lane, side by side")
        assert half is not None
        return RegisterType(type_.dtype, half)

    def reference(self, x: Any) -> Any:
        return x[:, self.at :: 2]
