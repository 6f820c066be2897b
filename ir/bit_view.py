"""Views of register tiles: the same bits of the same lanes, cut into other elements.

A lane's bits are those of its registers one after another, each lowest bit first. A tile may be
viewed as another just if both have the same lanes and the same number of bits in each: 3 registers
of u8 are 4 of u6 (Tilus, arXiv 2504.12984, section 7.2). Nothing moves, so a view costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout


@dataclass(frozen=True)
class Bits:
    """A register tile as bits: elements of ``width`` bits under a layout."""

    layout: Layout
    width: int

    @property
    def per_lane(self) -> int:
        """Bits of one lane."""
        return self.layout.registers * self.width

    def place(self, lane: int, bit: int) -> tuple[tuple[int, ...], int]:
        """The element, and the bit of it, that bit ``bit`` of a lane's bits belongs to."""
        register, low = divmod(bit, self.width)
        return self.layout.index(lane, register), low

    def __str__(self) -> str:
        return f"{self.width}-bit elements, {self.layout}"


def why_no_view(source: Bits, target: Bits) -> str | None:
    """The rule that a view of ``source`` as ``target`` breaks; None if it is legal."""
    if source.layout.lanes != target.layout.lanes:
        lanes = f"{source.layout.lanes}, not {target.layout.lanes}"
        return f"a view keeps the lanes ({lanes})"
    if source.per_lane != target.per_lane:
        return f"a view keeps the bits of a lane ({source.per_lane}, not {target.per_lane})"
    return None


@dataclass(frozen=True)
class BitView:
    """A legal view. Raises UnsupportedError for one that is not."""

    source: Bits
    target: Bits

    def __post_init__(self) -> None:
        broken = why_no_view(self.source, self.target)
        if broken:
            raise UnsupportedError(f"{self.source} as {self.target}: {broken}")

    def bit_of(self, lane: int, register: int, bit: int) -> tuple[tuple[int, ...], int]:
        """The source's element, and the bit of it, that is bit ``bit`` of the target's register."""
        return self.source.place(lane, register * self.target.width + bit)

    def register_of(self, register: int, bit: int) -> tuple[int, int]:
        """The source's register, and the bit of it, in any lane, that is this bit of the
        target's."""
        return divmod(register * self.target.width + bit, self.source.width)

    def turned(self) -> BitView:
        """The view back."""
        return BitView(self.target, self.source)

    def then(self, other: BitView) -> BitView:
        """This view and another of its result, as one."""
        if other.source != self.target:
            raise UnsupportedError(
                f"{other.source} is not what the first view gives, {self.target}"
            )
        return BitView(self.source, other.target)
