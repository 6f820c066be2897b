"""Lines of memory that a tile of offsets names: rows of a matrix in any order, tokens on pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.core import Value, attribute, operand
from tilewright.ir.dtypes import I64
from tilewright.ir.layout import Layout
from tilewright.ir.ops_index import TileOp
from tilewright.ir.types import RegisterType, Type


class Lines(TileOp):
    """Base: a tile whose elements lie side by side in memory along dimension ``dim``, and begin at
    ``offset + offsets[i]`` for every position i of the other dimension. From position ``limit`` of
    ``dim`` on, if there is one, elements are zero and nothing is read. With ``gaps`` lines at
    negative offsets are zero, too (or not written)."""

    offset: Value
    offsets: Value
    dim: int = attribute()
    gaps: bool = attribute(default=False)

    def check_lines(
        self, layout: Layout, offset: Value, offsets: Value, limits: tuple[Value, ...]
    ) -> None:
        """The type rules that all operations on lines share."""
        type_ = self.register(offsets)
        self.require(layout.rank == 2, "lines make up a matrix")
        self.require_dim(self.dim, layout)
        shape = list(layout.shape)
        shape[self.dim] = 1
        fits = type_.dtype == I64 and list(type_.shape) == shape
        self.require(fits, f"offsets must be i64 [{shape[0]}, {shape[1]}]")
        self.require_indices((offset, *limits))
        self.require(len(limits) <= 1, "one limit at most")

    def places(
        self, length: int, offset: Any, offsets: Any, limit: list[Any], size: int
    ) -> tuple[Any, Any]:
        """Where the elements of lines of a ``length`` lie in memory of ``size`` elements, and which
        are read or written; an IndexError with the first that lies outside."""
        along = np.arange(length)
        along = along[:, None] if self.dim == 0 else along[None, :]
        at = np.asarray(offset + offsets + along)
        valid = np.broadcast_to(along < limit[0] if limit else along >= 0, at.shape)
        if self.gaps:
            valid = valid & (offsets >= 0)
        wrong = valid & ((at < 0) | (at >= size))
        if wrong.any():
            raise IndexError(f"offset {int(at[wrong][0])} outside 0..{size - 1}")
        return np.where(valid, at, 0), valid


class LoadLines(Lines, name="tile.load_lines", traits=("reads",)):
    """A register tile of lines of a buffer; ``rest``: the limit, if there is one."""

    source: Value = operand()
    offset: Value = operand()
    offsets: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    layout: Layout = attribute()

    def infer(self) -> Type:
        self.check_lines(self.layout, self.offset, self.offsets, self.rest)
        return RegisterType(self.memory(self.source).dtype, self.layout)


class CopyLines(Lines, name="tile.copy_lines", traits=("reads", "writes")):
    """Begins to copy lines of a buffer into shared memory [slots, rows, columns], as
    ``tile.copy_async``; ``rest``: start indices in shared memory, and the limit if there is one."""

    source: Value = operand()
    target: Value = operand()
    offset: Value = operand()
    offsets: Value = operand()
    rest: tuple[Value, ...] = operand(rest=True)
    to: tuple[int, ...] = attribute()
    layout: Layout = attribute()

    def infer(self) -> tuple[Type, ...]:
        _, target = self.copied(self.source, self.target)
        rank = len(target.shape)
        self.require(len(self.rest) >= rank, "one index per dimension of shared memory")
        self.require_indices(self.rest)
        self.check_lines(self.layout, self.offset, self.offsets, self.rest[rank:])
        self.require(sorted(self.to) == [-1, 0, 1] and rank == 3, "to names every tile dimension")
        return ()


class StoreLines(Lines, name="tile.store_lines", traits=("writes",)):
    """Writes a register tile to lines of a buffer, no two of them at one place."""

    value: Value = operand()
    target: Value = operand()
    offset: Value = operand()
    offsets: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        value = self.register(self.value)
        self.require(value.dtype == self.memory(self.target).dtype, "dtypes must agree")
        self.check_lines(value.layout, self.offset, self.offsets, ())
        return ()
