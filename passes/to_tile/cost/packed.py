"""Instructions of a kernel with packed weights: a form in rows and vectors, found from four
programs.

A register tile unpacks each vector's codes once for all rows, reads each row once for all vectors
and multiplies every pair, so that the instructions of each part are

    a + b vectors + c rows + d rows vectors

whatever the packing. The four numbers come from programs for one and two rows and vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.ir.core import Graph
from tilewright.ir.target import Target
from tilewright.passes.to_tile.choices import Choice
from tilewright.passes.to_tile.cost.counts import Counts, Number, Section
from tilewright.passes.to_tile.cost.walk import Walker
from tilewright.passes.to_tile.kernel_info import KernelInfo
from tilewright.passes.to_tile.lowbit.info import packed_products
from tilewright.passes.to_tile.lower import kernel_to_tile

CONSTANTS = 4  # registers for masks, tables and scales


@dataclass(frozen=True)
class PackedModel:
    """``corners``: the sections of one register tile for (rows, vectors) of (1, 1) to (2, 2)."""

    corners: Mapping[tuple[int, int], Sequence[Section]]
    products: int
    target: Target

    @staticmethod
    def of(
        graph: Graph, info: KernelInfo, target: Target, rows: int, units: dict[str, int]
    ) -> PackedModel:
        """Writes the four programs."""
        corners = {}
        sizes = {name: 1 for name in graph.sizes}
        for tile in (1, 2):
            for vectors in (1, 2):
                choice = {"rows": tile, "vectors": vectors, "item_rows": tile, "prefetch": 0}
                program = kernel_to_tile(graph, target, rows, units, choice)
                walker = Walker(program, sizes, target)
                walker.item((0,) * len(program.attrs["grid"]))
                corners[tile, vectors] = walker.sections()
        return PackedModel(corners, len(packed_products(info.graph)), target)

    def sections(
        self, choices: Sequence[Choice], info: KernelInfo, sizes: Mapping[str, int]
    ) -> tuple[list[Section], Number]:
        """What an average work item does, and how many there are."""
        fields = {name: np.array([c[name] for c in choices], float) for name in choices[0]}
        rows, vectors, item_rows = fields["rows"], fields["vectors"], fields["item_rows"]
        count = info.row_count.evaluate(sizes)
        blocks = packed_products(info.graph)[0].blocks.evaluate(sizes)
        along, items = np.ceil(blocks / vectors), np.ceil(count / item_rows)
        last = count - (items - 1) * item_rows
        tiles = ((items - 1) * np.ceil(item_rows / rows) + np.ceil(last / rows)) / items
        found = []
        for at, first in enumerate(self.corners[1, 1]):
            counts = self._between(at, rows, vectors)
            spills = self._spilled(counts, rows, vectors)
            apart = counts.broadcast * self._apart(counts, vectors)
            turns = first.turns * tiles
            found.append(Section(first.name, counts, turns, spills=spills, apart=apart))
        return found, along * items

    def _between(self, at: int, rows: Number, vectors: Number) -> Counts:
        (one, wide), (high, both) = (
            [self.corners[r, v][at].counts for v in (1, 2)] for r in (1, 2)
        )
        more_rows, more_vectors = high + one * -1.0, wide + one * -1.0
        pairs = both + high * -1.0 + wide * -1.0 + one
        found = one + more_rows * (rows - 1) + more_vectors * (vectors - 1)
        return Counts(*(found + pairs * ((rows - 1) * (vectors - 1))).numbers)

    def _apart(self, counts: Counts, vectors: Number) -> Number:
        """The part of broadcasts that are loads of their own: those that several vectors use; of
        bytes, which are widened by a broadcast of their own, half."""
        if np.mean(counts.dot) > np.mean(counts.fma):
            return 0.5
        return np.where((vectors <= 1) & self.target.folds_broadcast, 0.0, 1.0)

    def _spilled(self, counts: Counts, rows: Number, vectors: Number) -> Number:
        """Registers that wait in memory: totals once a group, and in each step sums, rows that
        several vectors use, and codes."""
        sums = rows * vectors * self.products
        held = sums + np.where(vectors > 1, rows, 0) + vectors + CONSTANTS
        steps = (counts.fma + counts.dot) / (rows * vectors)
        over = np.maximum(held - self.target.registers, 0) * steps
        return over + np.maximum(2 * sums + CONSTANTS - self.target.registers, 0)
