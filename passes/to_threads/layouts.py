"""Where the elements of a block's tiles lie in its threads.

A tile belongs to a family of layouts. *Rows*: warps share out the rows, and a warp holds its part
as matrix units hold sums, which is also how they take the left operand: sums of one product go on
to the next without a move. *Terms* of a unit: every warp holds the whole tile as the unit takes the
right operand. *Rows in fours* are rows with four neighbours in a thread, as words of two numbers
each unpack. A tile of size one in a dimension has the layout that a reduction leaves there.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.matrix_units import UNITS, WARP

ROWS, FOURS = "rows", "rows in fours"
_TERMS = "terms of "


def terms_of(unit: str) -> str:
    """The family of the right operands of a matrix unit."""
    return _TERMS + unit


@dataclass(frozen=True)
class BlockLayouts:
    """The layouts of a block of ``warps`` warps; ``sums``: how units hold what they add up."""

    warps: int
    sums: Layout = UNITS["m16n8k16"].c

    @property
    def threads(self) -> int:
        return self.warps * WARP

    def of(self, family: str, shape: tuple[int, ...]) -> Layout:
        """The layout of a tile. Raises UnsupportedError for shapes that warps cannot share."""
        if len(shape) != 2:
            raise UnsupportedError(f"a tile of {len(shape)} dimensions in a program of threads")
        if shape == (1, 1):
            return Layout(2)
        if family == ROWS:
            return self._rows(self.sums, *shape)
        if family == FOURS:
            return self._rows(UNITS["m16n8k16_fours"].a, *shape)
        return self._terms(UNITS[family.removeprefix(_TERMS)].b, *shape)

    def _rows(self, atom: Layout, rows: int, columns: int) -> Layout:
        """Warps have 16 rows each, one warp's after the other's; of tiles with fewer rows or
        columns, threads without an element of their own hold copies."""
        down, across = atom.shape
        wide = max(columns, across)
        tall = max(rows, down * self.warps)
        if rows in (1, tall) and columns in (1, wide):
            below = Layout(2).local(tall // (down * self.warps), 1).spatial(self.warps, 1)
            whole = below.local(1, wide // across) @ atom
            if whole.shape == (tall, wide):
                return collapsed(whole, (rows, columns))
        if not (power_of_two(rows) and power_of_two(columns)):
            raise _misfit((rows, columns), atom.shape, self.warps)
        several = max(1, min(self.warps, rows // down))
        below = Layout(2).local(max(1, rows // (down * several)), 1).spatial(several, 1)
        below = below.replicate(self.warps // several).local(1, max(1, columns // across))
        lanes = min(rows, 8), min(max(1, columns // atom.packed), across // atom.packed)
        below = below.local(2 if rows >= down else 1, 1)
        below = below.spatial(lanes[0], 1).replicate(8 // lanes[0])
        below = below.spatial(1, lanes[1]).replicate(across // atom.packed // lanes[1])
        return below.local(1, min(columns, atom.packed))

    def _terms(self, atom: Layout, terms: int, columns: int) -> Layout:
        whole = tuple(max(n, least) for n, least in zip((terms, columns), atom.shape, strict=True))
        parts = [n // least for n, least in zip(whole, atom.shape, strict=True)]
        full = Layout(2).replicate(self.warps).local(*parts) @ atom
        fits = terms in (1, whole[0]) and columns in (1, whole[1])
        if full.shape != whole or not fits:
            raise _misfit((terms, columns), atom.shape, 1)
        return collapsed(full, (terms, columns))

    def copies(self, shape: tuple[int, int], order: tuple[int, int], width: int) -> Layout:
        """Which thread copies which elements of a tile, ``width`` neighbours along dimension
        ``order[1]``: neighbouring threads go along a row of memory, then to the next."""
        rows, columns = shape[order[0]], shape[order[1]]
        across = min(columns // width, self.threads)
        down = min(rows, self.threads // across)
        spare = self.threads // (across * down)
        sizes = [(rows // down, columns // (width * across)), (down, across), (1, width)]
        turned = [(a, b) if order == (0, 1) else (b, a) for a, b in sizes]
        layout = Layout(2).local(*turned[0])
        across_first = layout.spatial if order == (0, 1) else layout.column_spatial
        layout = across_first(*turned[1]).replicate(spare).local(*turned[2])
        if layout.shape != shape or layout.lanes != self.threads:
            raise UnsupportedError(f"a copy of {shape} by {self.threads} threads")
        return layout


def power_of_two(number: int) -> bool:
    """True for 1, 2, 4, …"""
    return number & (number - 1) == 0


def collapsed(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """A layout with size one in the dimensions where ``shape`` has it."""
    for dim, size in enumerate(shape):
        if size == 1:
            layout = layout.collapse(dim)
    return layout


def _misfit(shape: tuple[int, int], atom: tuple[int, ...], warps: int) -> UnsupportedError:
    return UnsupportedError(
        f"a tile of {shape[0]} x {shape[1]} in a program of threads: {warps} warps share tiles of "
        f"multiples of {atom[0] * warps} x {atom[1]}"
    )
