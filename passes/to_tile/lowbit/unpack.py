"""How bits get from where a packing keeps them to where an instruction wants them.

Nothing is known of particular packings or widths: bits that lie in one word and have to move the
same distance move together, by one shift and one mask. A packing is good if few moves are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.ir import ops_math as m
from tilewright.ir.core import Value
from tilewright.ir.dtypes import I32
from tilewright.ir.layout import Layout
from tilewright.ir.packing import WORD, Packing
from tilewright.passes.to_tile.emitter import TileBuilder

Places = Sequence[int] | Mapping[int, int]
FULL = (1 << WORD) - 1
PART = "part"  # names a masked word that is combined with others


@dataclass(frozen=True)
class Move:
    """``mask`` bits of the result are those of word ``word`` moved down by ``shift`` (up if
    negative)."""

    word: int
    shift: int
    mask: int

    @property
    def reached(self) -> int:
        """The bits of the result that the moved word can set."""
        return FULL >> self.shift if self.shift >= 0 else (FULL << -self.shift) & FULL


def moves(packing: Packing, wanted: Sequence[tuple[int, Places]]) -> tuple[Move, ...]:
    """The moves that bring bits of codes into a word: ``wanted`` has for each code of a chunk the
    place of each of its bits, lowest first, or of some by their numbers."""
    found: dict[tuple[int, int], int] = {}
    for code, places in wanted:
        for piece in packing.pieces(code):
            for bit in range(piece.width):
                if isinstance(places, Mapping) and piece.low + bit not in places:
                    continue
                place = places[piece.low + bit]
                key = piece.word, piece.at + bit - place
                found[key] = found.get(key, 0) | 1 << place
    return tuple(Move(word, shift, mask) for (word, shift), mask in sorted(found.items()))


def quad_moves(packing: Packing, quad: int) -> tuple[Move, ...]:
    """Four neighbouring codes of a chunk, one in each byte."""
    bits = range(packing.bits)
    return moves(packing, [(4 * quad + b, [8 * b + t for t in bits]) for b in range(4)])


def code_moves(packing: Packing, code: int, places: Sequence[int] = ()) -> tuple[Move, ...]:
    """One code of a chunk, in the lowest bits or with its bits at ``places``."""
    return moves(packing, [(code, places or range(packing.bits))])


def chunk_words(build: TileBuilder, packing: Packing) -> list[Value]:
    """Words of a chunk that stand for any, to count what is done with them."""
    layout = Layout(2).spatial(1, 4)
    return [build.filled(at, I32, layout) for at in range(packing.words)]


def emit_moves(
    build: TileBuilder, words: Sequence[Value], wanted: Sequence[Move], loose: int = 0
) -> Value:
    """The word that the moves give; bits of ``loose`` may hold anything afterwards."""
    out: Value | None = None
    for move in wanted:
        part = _shifted(build, words[move.word], move.shift)
        alone = len(wanted) == 1 and not move.reached & ~(move.mask | loose)
        if move.mask != move.reached and not alone:
            part = build(m.BitAnd, part, constant(build, move.mask), hint=PART)
        out = part if out is None else build(m.BitOr, out, part, hint="codes")
    assert out is not None, "a code has at least one bit"
    return out


def constant(build: TileBuilder, bits: int) -> Value:
    """A word of these bits in every lane."""
    return build.number(bits - (1 << WORD) if bits >> (WORD - 1) else bits, I32)


def _shifted(build: TileBuilder, word: Value, shift: int) -> Value:
    if shift == 0:
        return word
    cls = m.ShiftRight if shift > 0 else m.ShiftLeft
    return build(cls, word, build.number(abs(shift), I32), hint="moved")
