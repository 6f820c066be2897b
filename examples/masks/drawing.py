"""Pictures of masks and scores, as SVG and as text. Computes nothing of attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CELL, MARGIN = 10, 24
SHADES = 8  # few, so that the last bit of a value does not change the picture
_PALE, _HIDDEN = (222, 232, 242), "#f4f4f4"
# one for each group of cells (documents, segments): all dark enough on white, apart for the
# colour-blind (Okabe and Ito)
_COLOURS = ((0, 90, 160), (196, 78, 0), (0, 120, 90), (150, 70, 130), (110, 90, 20))
_INK = " ░▒▓█"


@dataclass(frozen=True)
class Picture:
    """Cells [queries, keys]: NaN where a query does not see a key, else how dark, from 0 to 1.

    ``groups`` gives each cell a colour, by number; ``rows`` and ``columns`` are the words at the
    edges.
    """

    title: str
    cells: Tensor
    groups: Tensor | None = None
    rows: str = "queries"
    columns: str = "keys"


def seen(
    title: str, mask_mod: Callable[..., Any], rows: int, columns: int | None = None
) -> Picture:
    """Which keys the queries of sequence 0, head 0 see."""
    b, q_idx, kv_idx = _positions(rows, rows if columns is None else columns)
    visible = mask_mod(b, b, q_idx, kv_idx).expand(len(q_idx), len(kv_idx))
    return Picture(title, torch.where(visible, 1.0, math.nan))


def shades(
    title: str,
    score_mod: Callable[..., Any],
    rows: int,
    score: Tensor | None = None,
    causal: bool = False,
) -> Picture:
    """What a score function makes of ``score`` (of zeros): the darker, the more attention."""
    b, q_idx, kv_idx = _positions(rows, rows)
    score = torch.zeros(rows, rows) if score is None else score
    values = score_mod(score, b, b, q_idx, kv_idx).expand(rows, rows)
    if causal:
        values = values.masked_fill(kv_idx > q_idx, math.nan)
    return Picture(title, as_darkness(values))


def as_darkness(values: Tensor) -> Tensor:
    """Numbers from the least to the largest as 0 to 1; NaN stays."""
    real = values[~values.isnan()]
    low, high = real.min(), real.max()
    return (values - low) / (high - low).clamp(min=1e-6)


def _positions(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(0), torch.arange(rows)[:, None], torch.arange(columns)


def as_svg(picture: Picture) -> str:
    """The picture as a file: a white page, so that it reads on dark ones as well."""
    rows, columns = picture.cells.shape
    width, height = columns * CELL + MARGIN + 8, rows * CELL + MARGIN + 8
    box = f'x="{MARGIN}" y="{MARGIN}" width="{columns * CELL}" height="{rows * CELL}"'
    label = 'font-family="sans-serif" font-size="11" fill="#333333" text-anchor="middle"'
    middle = MARGIN + columns * CELL // 2, MARGIN + rows * CELL // 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">',
        f"<title>{picture.title}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<rect {box} fill="{_HIDDEN}"/>',
        *_runs(picture),
        f'<path d="{_grid(rows, columns)}" stroke="#ffffff" stroke-width="1"/>',
        f'<text x="{middle[0]}" y="16" {label}>{picture.columns}</text>',
        f'<text transform="translate(16 {middle[1]}) rotate(-90)" {label}>{picture.rows}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _runs(picture: Picture) -> Iterator[str]:
    """One rectangle for neighbours in a row that look alike."""
    for y, row in enumerate(_colours(picture)):
        x = 0
        while x < len(row):
            end = x
            while end < len(row) and row[end] == row[x]:
                end += 1
            if row[x]:
                place = f'x="{MARGIN + x * CELL}" y="{MARGIN + y * CELL}"'
                yield f'<rect {place} width="{(end - x) * CELL}" height="{CELL}" fill="{row[x]}"/>'
            x = end


def _colours(picture: Picture) -> list[list[str]]:
    """The colour of every cell, "" for what is not seen."""
    groups = torch.zeros_like(picture.cells) if picture.groups is None else picture.groups
    pairs = zip(picture.cells.tolist(), groups.tolist(), strict=True)
    return [[_colour(*cell) for cell in zip(*pair, strict=True)] for pair in pairs]


def _colour(darkness: float, group: float) -> str:
    if math.isnan(darkness):
        return ""
    part = _step(darkness, SHADES - 1) / (SHADES - 1)
    dark = _COLOURS[int(group) % len(_COLOURS)]
    mixed = [round(a + (b - a) * part) for a, b in zip(_PALE, dark, strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _step(darkness: float, steps: int) -> int:
    """0 … steps; halves are moved off the edge, where rounding would be up to the last bit."""
    return min(steps, int(darkness * steps + 0.5 + 1e-4))


def _grid(rows: int, columns: int) -> str:
    right, bottom = MARGIN + columns * CELL, MARGIN + rows * CELL
    across = [f"M{MARGIN} {MARGIN + y * CELL}H{right}" for y in range(rows + 1)]
    down = [f"M{MARGIN + x * CELL} {MARGIN}V{bottom}" for x in range(columns + 1)]
    return "".join(across + down)


def as_text(picture: Picture) -> str:
    """The picture for a terminal: a row of text for each query, two columns for each key."""
    lines = [f"{picture.rows} down, {picture.columns} across; · is not seen"]
    for row in picture.cells.tolist():
        ink = ["·" if math.isnan(x) else _INK[1 + _step(x, len(_INK) - 2)] for x in row]
        lines.append("".join(2 * c if c != "·" else "· " for c in ink).rstrip())
    return "\n".join(lines)
