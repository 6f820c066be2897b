"""Operations of tile programs on whole blocks, which a back end shares out among threads itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, operand
from tilewright.ir.dtypes import I64
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import INDEX, Type


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
        single = type_.layout.registers == type_.layout.lanes == 1
        self.require(single and type_.dtype == I64, "needs one i64")
        return INDEX

    def reference(self, x: Any) -> Any:
        return np.asarray(x).item()
