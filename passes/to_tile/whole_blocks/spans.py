"""Which blocks work items walk, found once for all that share a block of rows.

Where masks have tests (documents: ``number[i] == number[j]``), a work item looks up which blocks of
positions it needs (``seen.py``) before it can read the first one. Where some grid axes do not
change that (batch and heads), many items would look up the same. So a first kernel does, one item a
block of rows, and leaves in memory

    spans [grid axes that the mask reads, blocks of rows, 4]        first, last, whole, past

which the second reads: four numbers instead of a walk over tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir import ops_tile as t
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I64
from tilewright.ir.sizes import Size
from tilewright.ir.types import BufferType
from tilewright.passes.to_tile.block_range import Span
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.mask_range import MaskRange
from tilewright.passes.to_tile.state import LoweringState
from tilewright.passes.to_tile.whole_blocks.row_bounds import row_bound

BLOCKS = "row_blocks"  # the name of their number, unless a size is called so
NUMBERS = 4


@dataclass(frozen=True)
class Spans:
    """The memory between both kernels, and the grid axes along which it has spans of their own."""

    info: KernelInfo
    blocks: Size
    axes: tuple[str, ...]
    buffer: Value

    @classmethod
    def of(cls, info: KernelInfo, mask: MaskRange) -> Spans | None:
        """That of a kernel; None where nothing is looked up, or every work item has a span of its
        own."""
        tests = [test for test in mask.tests if row_bound(info, test) is None]
        if not tests or info.splits or len(info.rows) != 1:
            return None
        read = {axis for test in mask.tests for axis in info.depends[test]}
        read |= {name for bound in mask.bounds for name, _ in bound.terms}
        used = [axis for axis in info.grid if axis.name in read]
        if len(used) == len(info.grid):
            return None
        name = BLOCKS
        while name in info.graph.sizes:
            name += "_"
        shape = (*(axis.size for axis in used), Size.of(name), Size.of(NUMBERS))
        buffer = Value(BufferType(shape, I64, len(shape) - 1), "spans")
        return cls(info, Size.of(name), tuple(axis.name for axis in used), buffer)

    def grid(self, rows: int) -> tuple[tuple[Size, int], ...]:
        """Of the first kernel: axes that nothing is looked up along have one position."""
        info = self.info
        one = Size.of(1)
        grid = [(axis.size if axis.name in self.axes else one, 1) for axis in info.grid]
        return (*grid, (info.row_count, rows))

    def write(self, state: LoweringState, rows: int, span: Span) -> None:
        """Leaves a work item's span in memory."""
        b, at = state.build, self._at(state, rows)
        for number, value in enumerate(span):
            x = b.number_of(value, I64)
            b.store(x, self.buffer, [*at, b.index(number)], [-1] * (len(at) + 1))

    def read(self, state: LoweringState, rows: int) -> Span:
        """The span of a work item."""
        b, at = state.build, self._at(state, rows)
        first, last, whole, past = (
            b(t.Read, self.buffer, *at, b.index(number), hint=hint)
            for number, hint in enumerate(("first", "last", "whole", "past"))
        )
        return first, last, whole, past

    def _at(self, state: LoweringState, rows: int) -> list[Value]:
        assert state.first_row is not None
        return [
            *(state.grid_at[name] for name in self.axes),
            state.build.div(state.first_row, rows),
        ]
