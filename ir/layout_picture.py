"""Layouts and packings as pictures, text and SVG: who holds which element, what every bit is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewright.ir.bit_view import Bits
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Layout
from tilewright.ir.packing import TILES, WORD, Packing

MOST_ACROSS, MOST_DOWN = 32, 64  # elements of a tile that text shows of each slice
MOST_CELLS = 4096  # of an SVG
_CELL, _MARGIN = (44, 22), 34
_SHADES = (
    "#cfe3f3",
    "#f8dcc4",
    "#cdeadd",
    "#ead4e6",
    "#eee3bd",
    "#dcdcdc",
)  # dark text reads on all


@dataclass(frozen=True)
class Cell:
    """A cell of a picture: where, how many columns wide, what it says, which colour."""

    row: int
    column: int
    text: str
    colour: int
    width: int = 1


def element_label(layout: Layout, index: Sequence[int]) -> str:
    """``lane.register``; of an element with copies all lanes, as ``0-3.1`` or ``0,4.1``."""
    holders = layout.holders(index)
    return f"{_ranges([lane for lane, _ in holders])}.{holders[0][1]}"


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, shortly: those that follow each other as first-last; the first four."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs[:4]]
    return ",".join(shown) + ("…" if len(runs) > 4 else "")


def summary(layout: Layout) -> str:
    """One line: shape, lanes, registers, copies."""
    shape = " x ".join(map(str, layout.shape)) or "1"
    copies = layout.lanes * layout.registers // math.prod(layout.shape)
    lanes, registers = _count(layout.lanes, "lane"), _count(layout.registers, "register")
    text = f"{_count(math.prod(layout.shape), 'element', shape)} on {lanes}, {registers} each"
    return text + (f", every element {copies} times" if copies > 1 else "")


def _count(number: int, noun: str, shown: str = "") -> str:
    return f"{shown or number} {noun}{'' if number == 1 else 's'}"


def _slices(layout: Layout) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """The tile as matrices: a name, the leading index, rows, columns."""
    *outer, rows, columns = (1, 1, *layout.shape)[-max(layout.rank, 2) :]
    for lead in itertools.product(*map(range, outer)):
        yield f"[{', '.join(map(str, lead))}, …]" if lead else "", lead, rows, columns


def _at(layout: Layout, lead: tuple[int, ...], row: int, column: int) -> tuple[int, ...]:
    return (*lead, row, column)[len(lead) + 2 - layout.rank :]


def layout_text(layout: Layout) -> str:
    """The tile with the lane and register of every element; large ones are cut off."""
    lines = [str(layout), summary(layout), "each element's lane.register"]
    for name, lead, rows, columns in _slices(layout):
        across, down = range(min(columns, MOST_ACROSS)), range(min(rows, MOST_DOWN))
        cells = [[element_label(layout, _at(layout, lead, r, c)) for c in across] for r in down]
        wide = max(len(text) for row in cells for text in row)
        wide = max(wide, len(str(columns - 1)))
        margin = len(str(rows - 1)) + 1
        lines += ["", name] if name else [""]
        lines.append(" " * margin + "".join(f"  {c:>{wide}}" for c in across))
        for r, row in enumerate(cells):
            more = "  …" if columns > MOST_ACROSS else ""
            lines.append(f"{r:>{margin}}" + "".join(f"  {text:>{wide}}" for text in row) + more)
        if rows > MOST_DOWN:
            lines.append(f"{'…':>{margin}}")
    return "\n".join(lines)


def bits_text(layout: Layout, width: int, lane: int = 0) -> str:
    """Which element every bit of a lane belongs to, a register a line."""
    bits = Bits(layout, width)
    if not 0 <= lane < layout.lanes:
        raise UnsupportedError(f"{layout} has the lanes 0 to {layout.lanes - 1}, no lane {lane}")
    lines = [f"the {bits.per_lane} bits of lane {lane}, {width} a register"]
    for register in range(layout.registers):
        index, low = bits.place(lane, register * width)
        assert low == 0, "a register begins with its element's lowest bit"
        first, last = register * width, register * width + width - 1
        where = f"bits {first}-{last}" if width > 1 else f"bit {first}"
        lines.append(f"  {where:<14} register {register:<5} element {list(index)}")
    return "\n".join(lines)


# ---- packings


def word_bits(packing: Packing) -> list[list[tuple[int, int]]]:
    """``[word][bit]``: the code of the chunk, and the bit of it, that lies there."""
    words = [[(-1, -1)] * WORD for _ in range(packing.words)]
    for code in range(packing.chunk):
        for piece in packing.pieces(code):
            for bit in range(piece.width):
                words[piece.word][piece.at + bit] = (code, piece.low + bit)
    return words


def packing_summary(packing: Packing) -> str:
    """One line: how codes, words, groups and padding go together."""
    padded, group = packing.padded_group, packing.group
    padding = (
        f", {padded - group} of {padded} codes of a group are padding" if padded > group else ""
    )
    inner = "tile, lane, word" if packing.order == TILES else "word, lane"
    return (
        f"{packing.bits}-bit codes, {packing.chunk} in {packing.words} words of a lane (a chunk)"
        f"{padding}; words lie as [block, chunk, {inner}]"
    )


def packing_text(packing: Packing) -> str:
    """Every bit of a lane's words as code.bit, the highest bit of a word first."""
    lines = [str(packing), packing_summary(packing), "each bit's code.bit", ""]
    wide = len(f"{packing.chunk - 1}.{packing.bits - 1}")
    for number, word in enumerate(word_bits(packing)):
        for high in (WORD, WORD // 2):
            label = f"word {number}" if high == WORD else ""
            cells = [f"{c}.{b}" for c, b in reversed(word[high - WORD // 2 : high])]
            span = f"bits {high - 1}-{high - WORD // 2}"
            lines.append(f"{label:<8} {span:<10}" + "".join(f" {x:>{wide}}" for x in cells))
    return "\n".join(lines)


# ---- SVG


def layout_svg(layout: Layout) -> str:
    """The tile with the lane and register of every element, a colour for each of six lanes."""
    if math.prod(layout.shape) > MOST_CELLS:
        raise UnsupportedError(
            f"a picture has at most {MOST_CELLS} cells; draw a part of the layout's atoms"
        )
    cells: list[Cell] = []
    named: list[str] = []  # rows, by their number in a slice
    columns = 1
    for _, lead, rows, columns in _slices(layout):
        named += [""] * bool(named)  # a gap between slices
        top = len(named)
        named += map(str, range(rows))
        for r, c in itertools.product(range(rows), range(columns)):
            index = _at(layout, lead, r, c)
            lane = layout.holders(index)[0][0]
            cells.append(Cell(top + r, c, element_label(layout, index), lane))
    title = f"{layout}: {summary(layout)}; each element's lane.register"
    return _svg(title, cells, named, list(map(str, range(columns))))


def packing_svg(packing: Packing) -> str:
    """A lane's words, a row each, the highest bit first; colours and numbers are of codes."""
    cells = []
    for number, word in enumerate(word_bits(packing)):
        at = WORD
        while at > 0:
            code, high = word[at - 1]
            low = at - 1
            while low > 0 and word[low - 1] == (code, high - (at - low)):
                low -= 1
            span = word[low][1]
            bits = f"{high}:{span}" if high > span else str(high)
            whole = high == packing.bits - 1 and span == 0
            text = f"{code}" if whole else f"{code}[{bits}]"
            cells.append(Cell(number, WORD - at, text, code, at - low))
            at = low
    title = f"{packing}: the words of a lane's chunk, bit 31 left; code[bits of it]"
    words = [f"word {number}" for number in range(packing.words)]
    return _svg(title, cells, words, [str(WORD - 1 - c) for c in range(WORD)])


def _svg(title: str, cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Cells with the names of their rows and columns."""
    wide, high = _CELL
    left, top = _MARGIN + 12, _MARGIN
    width, height = left + len(columns) * wide + 8, top + len(rows) * high + 8
    font = 'font-family="sans-serif" font-size="11" text-anchor="middle"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<g {font} fill="#666666">',
    ]
    for c, label in enumerate(columns):
        lines.append(f'<text x="{left + c * wide + wide // 2}" y="{top - 8}">{label}</text>')
    for r, label in enumerate(rows):
        if label:
            lines.append(f'<text x="{left // 2}" y="{top + r * high + 15}">{label}</text>')
    lines.append(f'</g><g {font} stroke="#ffffff">')
    for cell in cells:
        x, y = left + cell.column * wide, top + cell.row * high
        box = f'x="{x}" y="{y}" width="{cell.width * wide}" height="{high}"'
        lines.append(f'<rect {box} fill="{_SHADES[cell.colour % len(_SHADES)]}"/>')
        at = f'x="{x + cell.width * wide // 2}" y="{y + 15}"'
        lines.append(f'<text {at} fill="#222222" stroke="none">{cell.text}</text>')
    return "\n".join([*lines, "</g>", "</svg>"]) + "\n"
