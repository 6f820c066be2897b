"""Run-time integers of tile programs: positions on the grid, sizes, strides, numbers in memory."""

from __future__ import annotations

from typing import Any

from tilewright.ir.core import Op, Value, attribute, operand
from tilewright.ir.dtypes import BOOL
from tilewright.ir.layout import Layout
from tilewright.ir.sizes import Size
from tilewright.ir.types import (
    INDEX,
    BufferType,
    IndexType,
    RegisterType,
    ScratchType,
    SharedType,
    Type,
)


class TileOp(Op):
    """Base: typed access to operands."""

    def register(self, value: Value) -> RegisterType:
        self.require(isinstance(value.type, RegisterType), "operand must be a register tile")
        assert isinstance(value.type, RegisterType)
        return value.type

    def memory(self, value: Value) -> BufferType | ScratchType:
        fits = isinstance(value.type, BufferType | ScratchType)
        self.require(fits, "operand must be memory")
        assert isinstance(value.type, BufferType | ScratchType)
        return value.type

    def copied(self, source: Value, target: Value) -> tuple[BufferType, SharedType]:
        """What a copy begins with and where it goes: a buffer, and shared memory of its dtype."""
        given, wanted = source.type, target.type
        self.require(isinstance(given, BufferType), "copies from a buffer")
        self.require(isinstance(wanted, SharedType), "copies to shared memory")
        assert isinstance(given, BufferType) and isinstance(wanted, SharedType)
        self.require(given.dtype == wanted.dtype, "dtypes must agree")
        return given, wanted

    def require_dim(self, dim: int, layout: Layout) -> None:
        self.require(0 <= dim < layout.rank, f"the tile has no dimension {dim}")

    def require_indices(self, values: tuple[Value, ...]) -> None:
        self.require(all(isinstance(v.type, IndexType) for v in values), "indices must be index")


class BlockId(TileOp, name="tile.block", traits=("pure",)):
    """This work item's position on dimension ``dim`` of the grid."""

    dim: int = attribute()

    def infer(self) -> Type:
        return INDEX


class SizeOf(TileOp, name="tile.size", traits=("pure",)):
    """The run-time value of a size."""

    size: Size = attribute()

    def infer(self) -> Type:
        return INDEX


class StrideOf(TileOp, name="tile.stride", traits=("pure",)):
    """The stride, in elements, of dimension ``dim`` of a buffer."""

    buffer: Value = operand()
    dim: int = attribute()

    def infer(self) -> Type:
        type_ = self.memory(self.buffer)
        self.require(isinstance(type_, BufferType), "only buffers have strides")
        self.require(0 <= self.dim < len(type_.shape), "no such dimension")
        return INDEX


class Read(TileOp, name="tile.read", traits=("reads",)):
    """One integer (or bool, as 0 or 1) from memory as an index, such as where a sequence starts."""

    source: Value = operand()
    at: tuple[Value, ...] = operand(rest=True)

    def infer(self) -> Type:
        memory = self.memory(self.source)
        self.require(memory.dtype.is_int or memory.dtype == BOOL, "reads integers")
        self.require(len(self.at) == len(memory.shape), "one index for every dimension")
        self.require_indices(self.at)
        return INDEX


class Less(TileOp, name="tile.less", traits=("pure",)):
    """1 if lhs < rhs, else 0, of run-time integers."""

    lhs: Value = operand()
    rhs: Value = operand()

    def infer(self) -> Type:
        self.require_indices(self.operands)
        return INDEX

    def reference(self, lhs: Any, rhs: Any) -> Any:
        return int(lhs < rhs)
