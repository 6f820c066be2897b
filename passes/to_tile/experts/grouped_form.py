"""What a grouped product of floats is, and how a work item goes about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.target import Target
from tilewright.passes.to_tile.experts.gate import GateFunction

PLAIN = GateFunction()


@dataclass(frozen=True)
class FloatForm:
    """A grouped product of rows of ``length`` elements of dtype ``x`` with matrices [width, length]
    of dtype ``weight``; results of dtype ``out``.

    ``products`` 2: gate and up, each such a matrix; ``woven``: both are one matrix [2 width,
    length], their rows in turns. ``turned``: neighbours along the width lie side by side in memory,
    not those along the length. ``bias`` dtype or None; ``scaled``: times a number of each row.
    ``chosen``: the rows of x are those that a list names.
    """

    length: int
    width: int
    weight: DType
    x: DType
    products: int = 1
    gate: GateFunction = PLAIN
    bias: DType | None = None
    scaled: bool = False
    turned: bool = False
    woven: bool = False
    chosen: bool = False
    out: DType = F32

    @property
    def weights(self) -> int:
        """Matrices of an expert."""
        return 1 if self.woven else self.products

    @property
    def columns(self) -> int:
        """Rows of such a matrix, columns of its product."""
        return 2 * self.width if self.woven else self.width

    def pairs(self, target: Target) -> bool:
        """Whether two products of a lane's word are one instruction."""
        bf16 = self.weight == self.x == BF16
        return bf16 and target.bf16_dot and self.length % 2 == 0


class Way(Enum):
    """What lies on lanes, and where weights are read."""

    ELEMENTS = "elements of a row; in place"
    COLUMNS = "columns; in place"
    PANEL = "columns; in place for the first rows, which keep them for the others"


@dataclass(frozen=True)
class Tiling:
    """A register tile: ``rows`` by ``vectors`` of columns of all weights, or for ELEMENTS by as
    many columns as make a register of sums."""

    way: Way
    rows: int
    vectors: int = 1


FEW = (1, 2)  # rows of a tile with elements on lanes
SEVERAL = 4  # rows that read turned weights in place
MANY = 6  # rows of a tile with columns on lanes


def tiling(form: FloatForm, target: Target, rows: int) -> Tiling:
    """For experts that have up to about ``rows`` rows each."""
    unit = 2 if target.registers < 32 else 4  # vectors beside MANY rows
    few = next((few for few in FEW if rows <= few), FEW[-1])
    if not form.turned and (rows <= few or target.lanes < 4):
        return Tiling(Way.ELEMENTS, min(few, target.lanes))
    if form.turned and rows <= 1:
        return Tiling(Way.COLUMNS, 1, 4 * unit)
    if form.turned and rows <= SEVERAL:
        return Tiling(Way.COLUMNS, SEVERAL, unit * 3 // 2)
    return Tiling(Way.PANEL, MANY, unit)
