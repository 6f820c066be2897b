"""Operations of tile programs that need their lanes' registers to lie in a certain way: products of
neighbours that share a lane, and the same tile under another layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BF16, F16
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import RegisterType, Type

PAIR = 2


class PairDot(TileOp, name="tile.pair_dot", traits=("pure",)):
    """acc[…, n] + a[…, 2n] * b[…, 2n] + a[…, 2n + 1] * b[…, 2n + 1], kept in the dtype of acc.

    Pairs of 16-bit floats lie side by side in the lane that has their sum (bf16 dot instruction).
    Sizes of one in other dimensions of a and b broadcast.
    """

    acc: Value = operand()
    a: Value = operand()
    b: Value = operand()

    def infer(self) -> Type:
        acc, a, b = (self.register(v) for v in self.operands)
        self.require(a.dtype == b.dtype and a.dtype in (BF16, F16), "a and b are 16-bit floats")
        for type_ in (a, b):
            words = words_of(type_.layout)
            fits = words is not None and words.shape[-1] == acc.shape[-1]
            self.require(fits, "pairs of the last dimension must be the innermost registers")
            assert words is not None
            self.require(words.is_part_of(acc.layout), "pairs lie in the lanes of their sums")
        return acc

    def reference(self, acc: Any, a: Any, b: Any) -> Any:
        wide = acc.dtype
        with np.errstate(all="ignore"):
            both = (
                a[..., h::PAIR].astype(wide) * b[..., h::PAIR].astype(wide) for h in range(PAIR)
            )
            return acc + sum(both)


def words_of(layout: Layout) -> Layout | None:
    """The layout of the pairs of a tile's last dimension; None if they are not what a lane's
    registers count first."""
    last = layout.rank - 1
    if layout.strides or not layout.steps or layout.steps[-1][:2] != ("local", last):
        return None
    size = layout.steps[-1][2]
    rest = Layout(layout.rank, layout.steps[:-1])
    if size % PAIR:
        return None
    return rest @ Layout(layout.rank).local(*[1] * last, size // PAIR)


class Rearrange(TileOp, name="tile.rearrange", traits=("pure",)):
    """The same tile under another layout, as many elements to a lane: elements move between lanes
    and registers."""

    x: Value = operand()
    layout: Layout = attribute()

    def infer(self) -> Type:
        type_ = self.register(self.x)
        self.require(self.layout.shape == type_.shape, f"the layout must be of {type_.shape}")
        fits = self.layout.lanes == type_.layout.lanes
        self.require(fits, f"the layout must have {type_.layout.lanes} lanes")
        return RegisterType(type_.dtype, self.layout)

    def reference(self, x: Any) -> Any:
        return x
