"""What charts are made of: lines, boxes, markers and texts at places, and axes of logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SHAPES = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",
    "square": "M-4,-4h8v8h-8z",
    "up": "M0,-5.2l5,8.7h-10z",
    "diamond": "M0,-5.6l5,5.6l-5,5.6l-5,-5.6z",
    "down": "M0,5.2l5,-8.7h-10z",
    "cross": "M-4.6,-2.6l2,-2l2.6,2.6l2.6,-2.6l2,2l-2.6,2.6l2.6,2.6l-2,2l-2.6,-2.6l-2.6,2.6l-2,-2"
    "l2.6,-2.6z",
    "plus": "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "left": "M-5.2,0l8.7,-5v10z",
    "right": "M5.2,0l-8.7,-5v10z",
    "bar": "M-5.5,-1.8h11v3.6h-11z",
    "hexagon": "M-5,0l2.5,-4.4h5l2.5,4.4l-2.5,4.4h-5z",
}
DASHES = ("", "6 3", "2 3", "9 3 2 3", "4 2", "12 3", "1 4", "8 2 2 2 2 2", "5 5", "3 1", "10 6")


@dataclass(frozen=True)
class Style:
    """Of a provider: a number for its colour, a shape, a dash, so that colour is never alone."""

    number: int
    title: str
    name: str

    @property
    def shape(self) -> str:
        return list(SHAPES.values())[self.number % len(SHAPES)]

    @property
    def dash(self) -> str:
        return DASHES[self.number % len(DASHES)]


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    kind: str = "grid"  # a class of the page's style sheet
    dash: str = ""

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    shape: str
    kind: str
    tip: str


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = ""
    turned: bool = False


@dataclass
class Drawing:
    """One picture in one width; what comes first lies below."""

    width: float
    height: float
    grid: list[Line] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """A picture for wide screens and one for phones, what it shows in words, its styles' legend."""

    key: str
    title: str
    about: str
    wide: Drawing
    narrow: Drawing
    legend: tuple[Style, ...] = ()


@dataclass(frozen=True)
class LogAxis:
    """Positive numbers from ``low`` to ``high`` over the pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a number lies; what is beyond the ends lies at the ends."""
        value = min(max(value, self.low), self.high)
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 8) -> list[float]:
        """Round numbers on it: 1, 2, 5 of each power of ten, or fewer if there are too many."""
        for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**p for p in self._powers() for s in steps]
            found = [t for t in found if self.low * 0.999 <= t <= self.high * 1.001]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]

    def _powers(self) -> range:
        return range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)


def around(values: list[float], margin: float = 1.25) -> tuple[float, float]:
    """Ends of an axis for these numbers; never the same."""
    low, high = min(values, default=1.0) / margin, max(values, default=1.0) * margin
    return low, max(high, low * 1.5)
