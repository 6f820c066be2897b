"""Instructions by the part of a core that they keep busy, as numbers or as one number per schedule.

All counts are of whole registers: an FMA on 16 lanes is one. ``scalar`` counts what is done once
for all lanes (positions of a mask, one number of a row), not the run-time integers of addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import numpy as np

Number = Any  # a float, or an array [schedules]


@dataclass(frozen=True)
class Counts:
    """``fma``: multiplications and multiply-adds; ``dot``: dot products of pairs or quads in a
    lane; ``add``: sums; ``alu``: other arithmetic on lanes; ``divide``: quotients and roots;
    ``shuffle``: moves between lanes; ``load``, ``store``: whole registers; ``broadcast``: one
    number for all lanes; ``lane``: lanes read or written one by one, ``gather`` of them together;
    ``prefetch``: lines."""

    fma: Number = 0.0
    dot: Number = 0.0
    add: Number = 0.0
    alu: Number = 0.0
    divide: Number = 0.0
    shuffle: Number = 0.0
    load: Number = 0.0
    broadcast: Number = 0.0
    store: Number = 0.0
    lane: Number = 0.0
    gather: Number = 0.0
    prefetch: Number = 0.0
    scalar: Number = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.numbers, other.numbers, strict=True)))

    def __mul__(self, times: Number) -> Counts:
        return Counts(*(a * times if _some(a) else 0.0 for a in self.numbers))

    @property
    def numbers(self) -> tuple[Number, ...]:
        """In the order of ``NAMES``."""
        return _numbers(self)

    @property
    def vector(self) -> Number:
        """All instructions on lanes and on memory."""
        return sum(self.numbers[:-1])

    def __str__(self) -> str:
        shown = zip(NAMES, self.numbers, strict=True)
        return ", ".join(f"{name} {float(np.mean(x)):g}" for name, x in shown if np.any(x))


def _some(x: Number) -> bool:
    return isinstance(x, np.ndarray) or bool(x)


NAMES = tuple(f.name for f in fields(Counts))
_numbers = attrgetter(*NAMES)
NOTHING = Counts()


@dataclass(frozen=True)
class Section:
    """Straight-line work that a loop repeats: ``counts`` of one turn, ``turns`` of it in a work
    item.

    ``entries``: how often the loop begins; ``chain``: cycles from one turn to the next at least;
    ``reach``: bytes that it reads over and over, which a cache has to hold; ``spills``: registers
    that wait in memory in every turn; ``apart``: broadcasts that take a load of their own."""

    name: str
    counts: Counts
    turns: Number = 1.0
    chain: Number = 0.0
    reach: Number = 0.0
    entries: Number = 0.0
    spills: Number = 0.0
    apart: Number = 0.0


def total(sections: list[Section]) -> Counts:
    """Everything that a work item does."""
    found = NOTHING
    for section in sections:
        found = found + section.counts * section.turns
    return found
