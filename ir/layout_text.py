"""Layouts from their atoms as they are written, with limits; ``reader.py`` knows the places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.layout_algebra import modes

MAX_TILE = 2**16  # lanes times registers


class WrongAtom(Exception):
    """What is wrong with atom number ``at``."""

    def __init__(self, at: int, message: str) -> None:
        self.at, self.message = at, message
        super().__init__(message)


def build_layout(atoms: Sequence[tuple[str, Any]]) -> Layout:
    """The product of atoms: a kind with its numbers; ``modes`` with those of every dimension, of
    lanes and of registers. Raises WrongAtom."""
    ranks = {_rank(kind, sizes) for kind, sizes in atoms if kind != "replicate"} or {2}
    if len(ranks) != 1:
        raise WrongAtom(0, "the atoms of a layout must have one rank")
    out, tile = Layout(ranks.pop()), 1
    for at, (kind, sizes) in enumerate(atoms):
        tile *= _tile(kind, sizes)
        if tile == 0:
            raise WrongAtom(at, "sizes of a layout are positive")
        if tile > MAX_TILE:
            raise WrongAtom(at, f"a tile has at most {MAX_TILE} registers on all lanes")
        if kind == "replicate" and len(sizes) != 1:
            raise WrongAtom(at, "replicate takes one number")
        if kind != "modes":
            out = getattr(out, kind)(*sizes)
            continue
        try:
            out @= modes(sizes[:-2], *sizes[-2:])
        except UnsupportedError as error:
            raise WrongAtom(at, error.message) from None
    return out


def _rank(kind: str, sizes: Any) -> int:
    return len(sizes) - (2 if kind == "modes" else 0)


def _tile(kind: str, sizes: Any) -> int:
    """By how many registers on all lanes an atom multiplies the tile."""
    if kind != "modes":
        return math.prod(sizes)
    copies = [abs(at) for at in sizes[-2] if at < 0]
    return math.prod([*copies, *(abs(size) for split in sizes[:-2] for size in split)])
