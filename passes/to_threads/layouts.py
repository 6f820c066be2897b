"""Where the elements of a block's tiles lie in its threads.

A tile belongs to a family of layouts. *Rows*: warps share out the rows, and a warp holds its part
as matrix units hold sums, which is also how they take the left operand: sums of one product go on
to the next without a move. *Terms* of a unit: every warp holds the whole tile as the unit takes the
right operand. *Rows in fours* are rows with four neighbours in a thread, as words of two numbers
each unpack. *Left of* a unit: rows as units take them that hold sums in another way, and *moved*
there from these. *Lanes*: vectors that meet no matrix are spread over the lanes of every warp.
*Copies* of a block: which thread copies which part of it, for what says where its parts lie.
*Made*: a right side that all threads make together, each once, before it goes to shared memory.
*Words* of a family: what the threads that have its tile unpack that from. A tile of size one in a
dimension has the layout that a reduction leaves there.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, from_digits
from tilewright.ir.matrix_units import UNITS, WARP

ROWS, FOURS, LANES = "rows", "rows in fours", "lanes"
_LEFT, _MOVED, _TERMS, _COPIES, _MADE, _WORDS = (
    "left of ",
    "moved to left of ",
    "terms of ",
    "copies of ",
    "made ",
    "words ",
)


def left_of(unit: str) -> str:
    """The family of the left operands of a matrix unit."""
    if "_turned" in unit:
        return _LEFT + unit
    return FOURS if unit.endswith("_fours") else ROWS


def moved_to(family: str) -> str:
    """The family of tiles that are rows, and are moved to a family of left operands then: where a
    unit takes these in other lanes than it leaves sums in."""
    return _MOVED + family.removeprefix(_LEFT) if family.startswith(_LEFT) else family


def is_moved(family: str) -> bool:
    """True for families that rows are moved to, between lanes."""
    return family.startswith(_MOVED)


def terms_of(unit: str) -> str:
    """The family of the right operands of a matrix unit."""
    return _TERMS + unit


def copies_of(shape: tuple[int, int], order: tuple[int, int], width: int) -> str:
    """The family of what belongs to the parts of a block that is copied
    (``BlockLayouts.copies``)."""
    return f"{_COPIES}{shape[0]} {shape[1]} {order[0]} {width}"


def words_of(family: str, chunk: int, dim: int) -> str:
    """The family of the words that a tile is unpacked from: each of its threads has those of its
    own part, ``chunk`` elements along a dimension from as many words as a chunk has."""
    made = Made.of(family)
    if made is not None:
        return made.part(chunk, dim).family
    if not family.startswith(_TERMS) or dim != 0:
        raise UnsupportedError(f"codes unpacked as {family} in a program of threads")
    return f"{_WORDS}{chunk} {family}"


def holds_words(family: str) -> bool:
    """True for families of words."""
    return family.startswith(_WORDS)


def loads_itself(family: str) -> bool:
    """True for families whose tiles threads load from memory for themselves: no thread has what
    another one has."""
    return family == ROWS or family.startswith((_LEFT, _WORDS))


@dataclass(frozen=True)
class Made:
    """A tile that threads make together, ``width`` neighbours along ``dim`` in each."""

    shape: tuple[int, int]
    dim: int
    width: int

    @property
    def family(self) -> str:
        return f"{_MADE}{self.shape[0]} {self.shape[1]} {self.dim} {self.width}"

    @staticmethod
    def of(family: str) -> Made | None:
        """What a family says; None for others."""
        if not family.startswith(_MADE):
            return None
        rows, columns, dim, width = map(int, family.removeprefix(_MADE).split())
        return Made((rows, columns), dim, width)

    def part(self, parts: int, dim: int) -> Made:
        """The same of one of so many tiles that are put side by side along a dimension."""
        if dim != self.dim or self.width != parts:
            raise UnsupportedError(f"{parts} tiles in turn along another dimension in threads")
        shape = tuple(n // parts if d == dim else n for d, n in enumerate(self.shape))
        return Made((shape[0], shape[1]), dim, 1)


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
        if family == LANES:
            return self._lanes(*shape)
        for kind in (_LEFT, _MOVED):
            if family.startswith(kind):
                return self._rows(UNITS[family.removeprefix(kind)].a, *shape)
        made = Made.of(family)
        if made is not None:
            return collapsed(self.made(made), shape)
        if family.startswith(_COPIES):
            rows, columns, first, width = map(int, family.removeprefix(_COPIES).split())
            layout = self.copies((rows, columns), (first, 1 - first), width)
            return collapsed(layout, shape)
        chunk = 1
        if holds_words(family):
            number, family = family.removeprefix(_WORDS).split(" ", 1)
            chunk = int(number)
        return self._terms(_in_chunks(UNITS[family.removeprefix(_TERMS)].b, chunk), *shape)

    def _lanes(self, rows: int, columns: int) -> Layout:
        """A vector in every warp; neighbours lie in neighbouring lanes."""
        size, dim = max(rows, columns), int(columns > 1)
        if not (power_of_two(size) and 1 in (rows, columns)):
            raise UnsupportedError(f"a vector of {rows} x {columns} in a program of threads")
        lanes = min(size, WARP)
        across = [1, 1]
        across[dim] = lanes
        whole = [1, 1]
        whole[dim] = size // lanes
        layout = Layout(2).replicate(self.warps).local(*whole)
        return layout.spatial(*across).replicate(WARP // lanes)

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

    def made(self, made: Made) -> Layout:
        """Neighbouring threads hold neighbours across the dimension along which each has some."""
        others, along = made.shape[1 - made.dim], made.shape[made.dim] // made.width
        down = min(others, self.threads)
        across = min(along, self.threads // down)
        spare = self.threads // (down * across)
        sizes = [(others // down, along // across), (down, 1), (1, across), (1, made.width)]
        turned = [(a, b) if made.dim == 1 else (b, a) for a, b in sizes]
        layout = Layout(2).local(*turned[0]).spatial(*turned[2]).spatial(*turned[1])
        layout = layout.replicate(spare).local(*turned[3])
        if layout.shape != made.shape or layout.lanes != self.threads:
            raise UnsupportedError(f"a tile of {made.shape} made by {self.threads} threads")
        return layout

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


def _in_chunks(atom: Layout, chunk: int) -> Layout:
    """The layout of words in the threads that have their codes, ``chunk`` of them along k each."""
    if chunk == 1:
        return atom
    digits = []
    for dim, stride, size in atom.digits()[0]:
        whole = max(chunk, stride) if dim == 0 else stride  # where the next word's codes begin
        count = max(1, stride * size // whole)
        digits.append((dim, whole // (chunk if dim == 0 else 1), count))
    lanes = [(d, n // (chunk if d == 0 else 1), size) for d, n, size in atom.digits()[1]]
    return from_digits(2, digits, lanes)


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
