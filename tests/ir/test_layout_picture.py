"""Pictures of layouts and packings, and views of bits, against the maps themselves."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.ir.layout_strategies import any_layouts
from tilewright.ir.bit_view import Bits, BitView, why_no_view
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout, local, spatial
from tilewright.ir.layout_picture import (
    bits_text,
    layout_svg,
    layout_text,
    packing_svg,
    packing_text,
    word_bits,
)
from tilewright.ir.packing import Packing

PACKINGS = [
    make(bits, 4, group)
    for make in (Packing.quads, Packing.fields)
    for bits in range(1, 9)
    for group in (5, 32, 33)
]


def numbers_of(label: str) -> set[int]:
    """The lanes that a label names: ``0-3,8``."""
    found: set[int] = set()
    for run in label.split(","):
        first, _, last = run.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


@given(any_layouts(most=32))
@settings(max_examples=60)
def test_text_shows_the_inverse(layout: Layout) -> None:
    assume(layout.shape[-1] <= 32)
    rows = [r for r in layout_text(layout).splitlines()[3:] if re.match(r" *\d+  .*\.", r)]
    cells = [cell for row in rows for cell in row.split()[1:]]
    assume(not any("…" in cell for cell in cells))
    every = list(np.ndindex(*layout.shape))
    assert len(cells) == len(every)
    for index, cell in zip(every, cells, strict=True):
        lanes, register = cell.rsplit(".", 1)
        holders = {(lane, int(register)) for lane in numbers_of(lanes)}
        assert holders == set(layout.holders(index))


def test_large_tiles_are_cut_off() -> None:
    shown = layout_text(spatial(100, 100))
    assert len(shown.splitlines()) < 80 and "…" in shown
    with pytest.raises(UnsupportedError, match="at most 4096 cells"):
        layout_svg(spatial(100, 100))


@given(any_layouts(most=16))
@settings(max_examples=30)
def test_svg_has_a_cell_for_every_element(layout: Layout) -> None:
    root = ElementTree.fromstring(layout_svg(layout))
    boxes = root.findall(".//{*}g/{*}rect")
    assert len(boxes) == len(list(np.ndindex(*layout.shape)))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packing_pictures_say_where_bits_go(packing: Packing) -> None:
    """Against ``pack`` itself: one code with one bit set sets that bit of that word."""
    words = word_bits(packing)
    assert len(words) == packing.words
    seen = {place for word in words for place in word}
    assert seen == {(c, b) for c in range(packing.chunk) for b in range(packing.bits)}
    whole = Packing(packing.order, packing.planes, packing.lanes, packing.chunk)
    for code in range(packing.chunk):
        for bit in range(packing.bits):
            codes = np.zeros((1, packing.chunk), np.uint8)
            codes[0, code] = 1 << bit
            (lane,) = np.asarray(whole.pack(codes)).view(np.uint32)[0, 0, :, :1].T
            at = [(w, b) for w in range(len(lane)) for b in range(32) if lane[w] >> b & 1]
            assert [words[w][b] for w, b in at] == [(code, bit)]
    shown = [
        re.split(r"bits \d+-\d+", row)[1].split() for row in packing_text(packing).splitlines()[4:]
    ]
    flat = [f"{c}.{b}" for word in words for c, b in word[::-1]]
    assert [cell for row in shown for cell in row] == flat
    root = ElementTree.fromstring(packing_svg(packing))
    widths = [int(box.attrib["width"]) for box in root.findall(".//{*}g/{*}rect")]
    assert sum(widths) == packing.words * 32 * 44


# ---- views


@st.composite
def bits_like(draw: st.DrawFn, lanes: int, per_lane: int) -> Bits:
    """A tile of so many lanes with so many bits in each."""
    width = draw(st.sampled_from([w for w in range(1, 33) if per_lane % w == 0]))
    wide = draw(st.booleans())
    registers = per_lane // width
    layout = spatial(lanes, 1).local(1, registers) if wide else local(registers).spatial(lanes)
    return Bits(layout, width)


@given(any_layouts(most=24), st.integers(1, 8), st.data())
def test_views_are_symmetric_and_transitive(
    layout: Layout, width: int, data: st.DataObject
) -> None:
    a = Bits(layout, width)
    b, c = (data.draw(bits_like(layout.lanes, a.per_lane)) for _ in range(2))
    assert why_no_view(a, a) is why_no_view(a, b) is why_no_view(b, a) is why_no_view(b, c) is None
    first, second = BitView(a, b), BitView(b, c)
    both = first.then(second)
    lane = data.draw(st.integers(0, layout.lanes - 1))
    for register in range(c.layout.registers):
        for bit in range(c.width):
            mid_register, mid_bit = second.register_of(register, bit)
            assert both.register_of(register, bit) == first.register_of(mid_register, mid_bit)
            wanted = first.bit_of(lane, mid_register, mid_bit)
            assert both.bit_of(lane, register, bit) == wanted
            assert first.turned().turned() == first
    places = {both.register_of(r, k) for r in range(c.layout.registers) for k in range(c.width)}
    assert places == {(r, k) for r in range(layout.registers) for k in range(width)}


@given(any_layouts(most=24), any_layouts(most=24), st.integers(1, 8), st.integers(1, 8))
def test_a_view_is_legal_just_if_lanes_and_bits_agree(
    a: Layout, b: Layout, wide: int, narrow: int
) -> None:
    legal = a.lanes == b.lanes and a.registers * wide == b.registers * narrow
    one, other = Bits(a, wide), Bits(b, narrow)
    assert (why_no_view(one, other) is None) == (why_no_view(other, one) is None) == legal
    if not legal:
        with pytest.raises(UnsupportedError, match="a view keeps the"):
            BitView(one, other)


def test_bits_of_a_lane() -> None:
    shown = bits_text(spatial(2, 2).local(4, 1), 6, 1)
    assert "the 24 bits of lane 1" in shown
    assert "bits 18-23     register 3     element [3, 1]" in shown
    with pytest.raises(UnsupportedError, match="no lane 4"):
        bits_text(spatial(2, 2), 6, 4)
    bytes_, codes = Bits(spatial(4).local(3), 8), Bits(spatial(4).local(4), 6)
    with pytest.raises(UnsupportedError, match="the first view gives"):
        BitView(bytes_, codes).then(BitView(bytes_, codes))
