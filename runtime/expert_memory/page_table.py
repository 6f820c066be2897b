"""Which pages of a range are mapped, and for how many owners: numbers only, no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Neighbouring pages that are mapped and unmapped together; bytes from the range's start."""

    offset: int
    size: int


class PageTable:
    """Reference counts of the pages of a range.

    An owner takes bytes [start, stop) and later gives back exactly these. Owners need not be page
    aligned: a page that two of them touch is mapped for the first and unmapped after the last.

        pages      |----0----|----1----|----2----|----3----|
        owner a     [--------------------)                     a: pieces 0, 1, 2
        owner b                          [---------------)     b: piece 3; page 2 is shared

    Only an owner's first and last page can be shared, so the pages between them are one piece: a
    device maps them with one allocation, which it can only give back whole.
    """

    def __init__(self, size: int, page: int) -> None:
        """For ``size`` bytes in pages of ``page`` bytes; the last page may reach past the size."""
        assert size > 0 and page > 0, (size, page)
        self.page = page
        self.pages = -(-size // page)
        self._owners: dict[int, int] = {}  # of the first page of each mapped piece
        self._mapped = 0

    @property
    def mapped_bytes(self) -> int:
        return self._mapped * self.page

    def missing(self, start: int, stop: int) -> list[Piece]:
        """The pieces of [start, stop) that no owner has yet, by address."""
        return [p for p in self._pieces(start, stop) if p.offset // self.page not in self._owners]

    def take(self, start: int, stop: int) -> None:
        """[start, stop) has one owner more. What was missing has been mapped by now."""
        for piece in self._pieces(start, stop):
            first = piece.offset // self.page
            if first not in self._owners:
                self._mapped += piece.size // self.page
            self._owners[first] = self._owners.get(first, 0) + 1

    def give_back(self, start: int, stop: int) -> list[Piece]:
        """[start, stop) has one owner less: the pieces that nobody has any more, by address."""
        free = []
        for piece in self._pieces(start, stop):
            first = piece.offset // self.page
            left = self._owners[first] - 1
            assert left >= 0, "given back more often than taken"
            if left:
                self._owners[first] = left
                continue
            del self._owners[first]
            self._mapped -= piece.size // self.page
            free.append(piece)
        return free

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        """[start, stop) as first page, pages between, last page."""
        assert 0 <= start < stop <= self.pages * self.page, (start, stop)
        page = self.page
        first, last = start // page, (stop - 1) // page
        if last - first < 2:
            return [Piece(at * page, page) for at in range(first, last + 1)]
        between = Piece((first + 1) * page, (last - first - 1) * page)
        return [Piece(first * page, page), between, Piece(last * page, page)]


def mapped_bytes(
    expert_bytes: int, experts: int, per_slot: int, counts: Sequence[int], page: int
) -> int:
    """What a weight's range would have mapped: base experts, and in slot i its ``counts[i]`` first
    rows. Only counted, nothing is reserved."""
    rows = experts + len(counts) * per_slot
    table = PageTable(rows * expert_bytes, page)
    table.take(0, experts * expert_bytes)
    for slot, count in enumerate(counts):
        first = experts + slot * per_slot
        if count:
            table.take(first * expert_bytes, (first + count) * expert_bytes)
    return table.mapped_bytes
