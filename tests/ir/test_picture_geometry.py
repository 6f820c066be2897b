"""Where things lie in pictures of layouts and packings: labels at their rows and columns, cells
beside each other, everything inside."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from tests.ir.layout_strategies import any_layouts
from tilewright.ir.layout import Layout, local, spatial
from tilewright.ir.layout_picture import layout_svg, layout_text, packing_svg, summary
from tilewright.ir.packing import Packing


@dataclass(frozen=True)
class Box:
    """A cell: its left, top, width, height, colour, and the text in it."""

    x: int
    y: int
    width: int
    height: int
    colour: str
    text: str


@dataclass(frozen=True)
class Picture:
    """An SVG's size, cells, and labels as (x, y, text)."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    labels: tuple[tuple[int, int, str], ...]

    @staticmethod
    def of(svg: str) -> Picture:
        root = ElementTree.fromstring(svg)
        names, cells = map(list, root.findall("./{*}g"))
        boxes = []
        for box, text in zip(cells[::2], cells[1::2], strict=True):
            x, y, wide, high = (int(box.attrib[k]) for k in ("x", "y", "width", "height"))
            assert int(text.attrib["x"]) == x + wide // 2
            assert y < int(text.attrib["y"]) < y + high
            boxes.append(Box(x, y, wide, high, box.attrib["fill"], text.text or ""))
        labels = [(int(t.attrib["x"]), int(t.attrib["y"]), t.text or "") for t in names]
        size = int(root.attrib["width"]), int(root.attrib["height"])
        return Picture(*size, tuple(boxes), tuple(labels))

    def check(self) -> None:
        """Cells do not overlap, and nothing lies outside."""
        for box in self.boxes:
            assert box.x >= 0 and box.x + box.width <= self.width
            assert box.y >= 0 and box.y + box.height <= self.height
        for a, b in itertools.combinations(self.boxes, 2):
            beside = a.x + a.width <= b.x or b.x + b.width <= a.x
            assert beside or a.y + a.height <= b.y or b.y + b.height <= a.y
        for x, y, _ in self.labels:
            assert 0 < x < self.width and 0 < y < self.height

    def columns(self) -> dict[str, int]:
        """Where the centre of each column's label is: labels above all cells."""
        top = min(box.y for box in self.boxes)
        return {text: x for x, y, text in self.labels if y < top}

    def rows(self) -> list[tuple[int, str]]:
        """The heights and texts of rows' labels: those left of all cells."""
        left = min(box.x for box in self.boxes)
        return [(y, text) for x, y, text in self.labels if x < left]


@given(any_layouts(most=12))
@settings(max_examples=40)
def test_labels_of_a_tile_name_their_rows_and_columns(layout: Layout) -> None:
    picture = Picture.of(layout_svg(layout))
    picture.check()
    down, across = (1, 1, *layout.shape)[-2:]
    columns, rows = picture.columns(), picture.rows()
    assert set(columns) == set(map(str, range(across)))
    for number, box in enumerate(picture.boxes):
        assert columns[str(number % across)] == box.x + box.width // 2
        (label,) = (text for y, text in rows if box.y < y < box.y + box.height)
        assert label == str(number // across % down)  # in each slice anew


@given(any_layouts(most=12))
@settings(max_examples=40)
def test_cells_of_one_lane_have_one_colour(layout: Layout) -> None:
    picture = Picture.of(layout_svg(layout))
    colours: dict[int, set[str]] = {}
    for box in picture.boxes:
        colours.setdefault(int(re.split("[-,.]", box.text)[0]), set()).add(box.colour)
    assert all(len(some) == 1 for some in colours.values())
    first = [next(iter(colours[lane])) for lane in sorted(colours) if lane < 6]
    assert len(set(first)) == len(first)  # six colours in turn


def test_slices_have_a_gap_between_them() -> None:
    picture = Picture.of(layout_svg(local(2, 1, 1).spatial(1, 2, 3)))
    picture.check()
    tops = sorted({box.y for box in picture.boxes})
    high = picture.boxes[0].height
    assert [b - a for a, b in itertools.pairwise(tops)] == [high, 2 * high, high]


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_of_a_packing_are_rows_of_32_bits(bits: int) -> None:
    packing = Packing.quads(bits, 4, 32)
    picture = Picture.of(packing_svg(packing))
    picture.check()
    rows, columns = picture.rows(), picture.columns()
    assert [text for _, text in rows] == [f"word {n}" for n in range(packing.words)]
    assert set(columns) == set(map(str, range(32)))
    unit = columns["30"] - columns["31"]
    assert all(columns[str(31 - n)] == columns["31"] + n * unit for n in range(32))  # 31 is left
    wide = Counter[str]()
    for box in picture.boxes:
        (word,) = (name for y, name in rows if box.y < y < box.y + box.height)
        wide[word] += box.width
        code, _, part = box.text.rstrip("]").partition("[")
        high, _, low = part.partition(":")
        span = bits if not part else int(high) - int(low or high) + 1
        assert box.width == span * unit and int(code) < packing.chunk
    assert set(wide.values()) == {32 * unit}


def test_text_has_its_columns_below_each_other() -> None:
    """Numbers of rows and columns, right aligned; what is cut off is marked."""
    lines = layout_text(spatial(3, 12)).splitlines()[4:]
    head, *rows = lines
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    ends = [match.end() for match in re.finditer(r"\d+", head)]
    assert head.split() == list(map(str, range(12)))
    for row in rows:
        assert [match.end() for match in re.finditer(r"\S+", row)][1:] == ends
    wide = layout_text(local(1, 33)).splitlines()
    assert wide[-1].endswith("…") and len(wide[-1].split()) == 1 + 32 + 1
    exact = layout_text(local(64, 32)).splitlines()
    assert not any("…" in line for line in exact)
    assert layout_text(local(65, 1)).splitlines()[-1].strip() == "…"


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (spatial(1, 1), "1 x 1 element on 1 lane, 1 register each"),
        (spatial(2, 3).local(4, 1), "8 x 3 elements on 6 lanes, 4 registers each"),
        (spatial(2).replicate(3), "2 elements on 6 lanes, 1 register each, every element 3 times"),
    ],
    ids=str,
)
def test_summaries_count(layout: Layout, text: str) -> None:
    assert summary(layout) == text
