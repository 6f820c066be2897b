"""Operations of tile programs that need their lanes' registers to lie in a certain way: products of
neighbours that share a lane, the same tile under another layout, and sums across lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import BF16, F16
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
from tilewright.ir.reduction import reduce_by_halves
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


class Reduce(TileOp, name="tile.reduce", traits=("pure",)):
    """Reduction over a tile dimension to size 1; lanes that shared it hold copies of the result.

    ``halves``: in one order everywhere, the first half with the second one until one element is
    left (a power of two of them); the larger of a and b is ``a > b ? a : b``.
    """

    x: Value = operand()
    kind: str = attribute()
    dim: int = attribute()
    halves: bool = attribute(default=False)

    def infer(self) -> Type:
        type_ = self.register(self.x)
        self.require(self.kind in ("sum", "max", "min"), "kind is sum, max or min")
        self.require_dim(self.dim, type_.layout)
        size = type_.shape[self.dim]
        self.require(not self.halves or size & (size - 1) == 0, "halves need a power of two")
        return RegisterType(type_.dtype, type_.layout.collapse(self.dim))

    def reference(self, x: Any) -> Any:
        if self.halves:
            return reduce_by_halves(x, self.kind, self.dim)
        functions: dict[str, Any] = {"sum": np.sum, "max": np.fmax.reduce, "min": np.fmin.reduce}
        with np.errstate(all="ignore"):
            return functions[self.kind](x, axis=self.dim, keepdims=True)
