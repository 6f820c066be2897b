"""Operations of tile programs that a GPU's threads do together."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import F32
from tilewright.ir.layout import Layout
from tilewright.ir.layout_algebra import divide
from tilewright.ir.matrix_units import (
    GROUP_TERMS,
    GROUP_WARPS,
    MOST_COLUMNS,
    UNITS,
    WARP,
    MatrixUnit,
)
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import SWIZZLED_BYTES, SharedType, Type


class MatrixProduct(TileOp, name="tile.matrix_product", traits=("pure",)):
    """acc[m, n] + sum over k of a[m, k] * b[k, n] by a matrix unit: its layouts divide those of
    acc, a and b, and warps hold matching parts."""

    acc: Value = operand()
    a: Value = operand()
    b: Value = operand()
    unit: str = attribute()

    def infer(self) -> Type:
        acc, a, b = (self.register(v) for v in self.operands)
        self.require(self.unit in UNITS, f"unit is one of {', '.join(UNITS)}")
        unit = UNITS[self.unit]
        self.require(len(acc.shape) == len(a.shape) == len(b.shape) == 2, "all are matrices")
        fits = acc.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
        self.require(fits, "acc is [m, n], a is [m, k], b is [k, n]")
        dtypes = a.dtype == b.dtype and a.dtype in unit.terms and acc.dtype == unit.sums
        self.require(dtypes, f"{unit.name} does not multiply {a.dtype} in {acc.dtype}")
        parts = warp_parts(unit, acc.layout, a.layout, b.layout)
        self.require(parts is not None, f"the layouts of {unit.name} do not divide the tiles'")
        assert parts is not None
        whole, left, right = (part.digits()[1] for part in parts)
        rows = parts[0].collapse(1).digits()[1]
        columns = parts[0].collapse(0).digits()[1]
        same = left == rows and right == columns and len(whole) <= len(rows) + len(columns)
        self.require(same, "warps hold parts of acc, a and b that do not belong together")
        return acc

    def reference(self, acc: Any, a: Any, b: Any) -> Any:
        with np.errstate(all="ignore"):
            return acc + a.astype(acc.dtype) @ b.astype(acc.dtype)


class GroupProduct(TileOp, name="tile.group_product", traits=("reads",)):
    """acc[m, n] + sum over k of a[m, k] * b[k, n] by warp groups, which read b in shared memory.

    b lies in slots [rows, columns] from slot ``first`` on, its columns cut into as many slots as
    they need; ``dims``: b's dimensions along rows and columns, (1, 0) with k innermost or (0, 1).
    acc and a have the layouts of ``m16n8k16``, warps side by side along rows; or a lies in shared
    memory, too, all of it: its columns (k) cut into slots. Written to shared memory by threads,
    sides may be read so behind a ``tile.fence`` and a barrier.
    """

    acc: Value = operand()
    a: Value = operand()
    b: Value = operand()
    first: Value = operand()
    dims: tuple[int, ...] = attribute()

    def infer(self) -> Type:
        acc, a, b = self.register(self.acc), self.a.type, self.b.type
        self._require_lines(b, "b")
        if isinstance(a, SharedType):
            self._require_lines(a, "a")
        else:
            a = self.register(self.a)
        assert isinstance(b, SharedType)
        self.require_indices((self.first,))
        self.require(tuple(self.dims) in ((0, 1), (1, 0)), "dims are [0, 1] or [1, 0]")
        self.require(len(acc.shape) == len(self.left_shape) == 2, "acc and a are matrices")
        self.require(a.dtype == b.dtype and a.dtype in GROUP_TERMS, "a and b are bf16 or f16")
        rows, terms = self.left_shape
        self.require(acc.dtype == F32 and acc.shape[0] == rows, "acc is [m, n] of f32")
        columns = acc.shape[1]
        across = terms if tuple(self.dims) == (1, 0) else columns
        down = columns if tuple(self.dims) == (1, 0) else terms
        self.require(b.shape[1] == down and across % b.shape[2] == 0, "b is [k, n]")
        unit = UNITS["m16n8k16"]
        warps = acc.layout.lanes // WARP
        groups = warps % GROUP_WARPS == 0 and columns <= MOST_COLUMNS and acc.shape[0] % 64 == 0
        self.require(groups, f"{warps} warps make products of {acc.shape[0]} x {columns}")
        sides = ((acc, unit.c), (a, unit.a))
        for x, atom in sides:
            if isinstance(x, SharedType):
                continue
            parts = divide(x.layout, atom)
            above = Layout(2).local(x.shape[0] // (warps * unit.m), 1).spatial(warps, 1)
            wanted = above.local(1, x.shape[1] // atom.shape[1])
            same = parts is not None and parts.same_map(wanted)
            self.require(same, "warps share out 64 rows after the other, as m16n8k16 has them")
        return acc

    def _require_lines(self, type_: Type, name: str) -> None:
        """A side in shared memory, as warp groups read it."""
        matrix = isinstance(type_, SharedType) and len(type_.shape) == 3
        self.require(matrix, f"{name} is [slots, rows, columns]")
        assert isinstance(type_, SharedType)
        row = type_.shape[2] * type_.dtype.bits // 8
        fits = row in (32, 64, 128) and type_.swizzle == row // SWIZZLED_BYTES
        self.require(fits, f"rows of {name} are lines of 32, 64 or 128 bytes, swizzled in all")

    @property
    def left_shape(self) -> tuple[int, ...]:
        """a's [m, k]."""
        a = self.a.type
        if isinstance(a, SharedType):
            return a.shape[1], a.shape[0] * a.shape[2]
        return self.register(self.a).shape

    def left(self, a: Any) -> Any:
        """a [m, k]: a tile, or out of the array of its shared memory."""
        return np.concatenate(list(a), axis=-1) if isinstance(self.a.type, SharedType) else a

    def matrix(self, memory: Any, first: int) -> Any:
        """b [k, n] out of the array of its shared memory."""
        columns = self.register(self.acc).shape[1]
        across = self.left_shape[1] if tuple(self.dims) == (1, 0) else columns
        parts = across // memory.shape[2]
        wide = np.concatenate(list(memory[first : first + parts]), axis=-1)
        return wide if tuple(self.dims) == (0, 1) else wide.T

    def reference(self, acc: Any, a: Any, b: Any, first: Any) -> Any:
        with np.errstate(all="ignore"):
            right = self.matrix(b, int(first)).astype(acc.dtype)
            return acc + self.left(a).astype(acc.dtype) @ right


class GroupBegin(GroupProduct, name="tile.group_begin"):
    """A product of warp groups that goes on beside them: its registers hold nothing until
    ``tile.group_wait``, and until then neither they nor b in shared memory may be written."""


class GroupWait(TileOp, name="tile.group_wait", traits=("writes",)):
    """The result of a product that was begun, once at most ``pending`` of those that the role has
    begun are still under way; the oldest end first.

    ``after``: f32 tiles that a compiler must not leave for after the wait, so that the product goes
    on beside what makes them.
    """

    x: Value = operand()
    after: tuple[Value, ...] = operand(rest=True)
    pending: int = attribute(default=0)

    def infer(self) -> Type:
        self.require(self.pending >= 0, "pending is a number of products from 0")
        first = all(self.register(v).dtype == F32 for v in self.after)
        self.require(first, "what comes first is f32")
        return self.register(self.x)


class Fence(TileOp, name="tile.fence", traits=("writes",)):
    """What a thread has written to shared memory may be read by warp groups from here on."""

    def infer(self) -> tuple[Type, ...]:
        return ()


def warp_parts(
    unit: MatrixUnit, acc: Layout, a: Layout, b: Layout
) -> tuple[Layout, Layout, Layout] | None:
    """Which instruction's tile every warp's register group holds: acc, a and b divided by the
    unit's layouts; None if it does not divide them."""
    parts = [divide(x, y) for x, y in ((acc, unit.c), (a, unit.a), (b, unit.b))]
    first, second, third = parts
    if first is None or second is None or third is None:
        return None
    return first, second, third
