"""What the interpreter does for lines of memory that offsets name."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.ir.evaluate import check
from tilewright.ir.ops_tile_lines import CopyLines, Lines, LoadLines, StoreLines


class LineOps:
    """Part of the interpreter of tile programs (evaluate_tile.Worker, and lane by lane)."""

    def positions(
        self, dims: tuple[int, ...], bounds: Any, shape: tuple[int, ...], rest: list[Any]
    ) -> tuple[list[Any], Any]:
        """For each memory dimension the positions of a tile's elements, and which are valid."""
        raise NotImplementedError

    def inside(self, op: Any, memory: Any, at: list[Any]) -> None:
        """Raises EvaluationError unless all positions lie in the memory."""
        raise NotImplementedError

    def line_offsets(self, op: Lines, offsets: Any, layout: Any) -> Any:
        """A tile of offsets, which the lanes of a layout must have."""
        return offsets

    def line_value(self, op: StoreLines, value: Any) -> Any:
        """The tile that is written."""
        return value

    def begin_lines(self, op: CopyLines, target: Any, to: list[Any], values: Any) -> None:
        """Copies values to places in shared memory."""
        target.array[tuple(to)] = values
        target.written[tuple(to)] = True

    def _line_places(self, op: Any, layout: Any, inputs: list[Any]) -> tuple[Any, Any]:
        """Flat places in memory, and which are accessed; inputs: memory, offset, offsets, limit."""
        memory, offset, offsets, *limit = inputs
        given = self.line_offsets(op, offsets, layout)
        try:
            at, valid = op.places(layout.shape[op.dim], offset, given, limit, memory.array.size)
        except IndexError as error:
            check(False, str(error), op)
            raise
        return at, valid

    def _lines(self, op: Any, inputs: list[Any]) -> Any:
        at, valid = self._line_places(op, op.layout, inputs)
        written = inputs[0].written.reshape(-1)[at]
        check(bool(np.all(written | ~valid)), "reads what nothing wrote", op)
        values = inputs[0].array.reshape(-1)[at]
        return np.where(valid, values, np.zeros_like(values))

    def do_tile_load_lines(self, op: LoadLines, inputs: list[Any], scope: Any) -> Any:
        return (self._lines(op, inputs),)

    def do_tile_copy_lines(self, op: CopyLines, inputs: list[Any], scope: Any) -> Any:
        source, target, offset, offsets, *rest = inputs
        values = self._lines(op, [source, offset, offsets, *rest[3:]])
        to, _ = self.positions(op.to, (), op.layout.shape, rest[:3])
        self.inside(op, target, to)
        self.begin_lines(op, target, to, values)
        return ()

    def do_tile_store_lines(self, op: StoreLines, inputs: list[Any], scope: Any) -> Any:
        value, memory, offset, offsets = inputs
        layout = op.value.type.layout  # type: ignore[union-attr]
        at, valid = self._line_places(op, layout, [memory, offset, offsets])
        places, values = at[valid], np.broadcast_to(self.line_value(op, value), at.shape)[valid]
        check(len(np.unique(places)) == places.size, "writes one place twice", op)
        memory.array.reshape(-1)[places] = values
        memory.written.reshape(-1)[places] = True
        return ()
