"""docs/gallery.md and docs/gallery/*.svg: the examples with pictures of what the compiler finds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from examples.masks import NAMES
from examples.masks.page import entry_of
from tests.docs.pages.depth_picture import depths, picture
from tests.docs.pages.markdown import WRITTEN, anchor, fenced
from tilewright.ir.parser import parse

ROOT = Path(__file__).resolve().parents[3]
HEAD = """\
# Gallery

{written} Programs as one writes them, and what the compiler makes of them. All pictures are drawn
by Tilewright itself, and a test compares them with what it draws now.

[Programs](#programs) · [masks and scores](#masks-and-scores) · [layouts and
packings](#layouts-and-packings) · [the streaming machine](#the-streaming-machine)

## Programs

Each bar is a channel between two operations; its length is the logarithm of how many elements it
has to hold for the full rate where every size is 1,024. On the left the program as it is written:
an orange channel has to hold a whole row or more, so a compiler that cuts there stores it in
memory. On the right the kernels after [the
rules](tour.md#3-algebra-that-makes-deep-channels-shallow): what is blue stays in registers,
whatever the sizes."""
MASKS = """\
## Masks and scores

Queries from top to bottom, keys from left to right; [each with its function and call](masks.md).
"""
LAYOUTS = """\
## Layouts and packings

Who holds which element of a register tile, and where the bits of low-bit codes lie: [the
algebra](layouts.md) draws these."""
LAYOUT_TITLES = {
    "mma_c": "sums of a matrix unit: `local(2, 1).spatial(8, 4).local(1, 2)`",
    "column": "lanes down the columns",
    "copies": "the same element on several lanes",
    "modes": "a dimension split between lanes and registers",
    "quads_6": "6-bit codes in two planes",
    "fields_3": "3-bit codes back to back",
}
STREAMS = """\
## The streaming machine

How full every channel of four ways to write attention is, cycle by cycle: [the page](streams.md)
says what to see."""


def files() -> dict[str, str]:
    """The page and its pictures, by their paths from the root of the repository."""
    parts, pictures = [HEAD.format(written=WRITTEN.format(source="the examples"))], {}
    for path in sorted((ROOT / "examples").glob("*.tw")):
        text = path.read_text(encoding="utf-8")
        title = path.stem.replace("_", " ").capitalize()
        pictures[f"docs/gallery/{path.stem}.svg"] = picture(title, depths(parse(text)))
        parts.append(_program(path.stem, title, text))
    masks = (
        (entry_of(n).title, f"masks/{n}.svg", f"masks.md#{anchor(entry_of(n).title)}")
        for n in NAMES
    )
    parts += [MASKS, _grid(masks)]
    drawn = {path.stem for path in (ROOT / "docs" / "images" / "layouts").glob("*.svg")}
    assert drawn == set(LAYOUT_TITLES), f"a layout without a title: {drawn ^ set(LAYOUT_TITLES)}"
    layouts = (
        (title, f"images/layouts/{n}.svg", "layouts.md") for n, title in LAYOUT_TITLES.items()
    )
    parts += [LAYOUTS, _grid(layouts)]
    streams = sorted((ROOT / "docs" / "streams").glob("*.svg"))
    names = ((p.stem.replace("_", " "), f"streams/{p.name}", "streams.md") for p in streams)
    parts += [STREAMS, _grid(names)]
    return {"docs/gallery.md": "\n".join(parts), **pictures}


def _program(stem: str, title: str, text: str) -> str:
    """Its own words, its picture, its text, and what to try."""
    comment = "\n".join(re.findall(r"^//(?: (.*))?$", text, re.MULTILINE))
    about, _, tries = comment.partition("Try:")
    commands = [line.strip() for line in tries.splitlines() if line.strip()]
    code = re.sub(r"^//.*\n", "", text, flags=re.MULTILINE)
    parts = [
        f"### {title}\n",
        about.strip() + "\n",
        f"![Depths of the channels of {title}](gallery/{stem}.svg)\n",
        fenced("text", code),
        fenced("console", "\n".join(commands or [f"tilewright explain examples/{stem}.tw"])),
    ]
    return "\n".join(parts)


def _grid(pictures: Iterator[tuple[str, str, str]]) -> str:
    """Pictures side by side (in the site; below each other elsewhere), with their titles."""
    cells = []
    for title, source, link in pictures:
        picture_link = f"![{title.replace('`', '')}]({source}){{ loading=lazy }}"
        cells.append(f"-   **[{title}]({link})**\n\n    {picture_link}\n")
    return '<div class="gallery" markdown>\n\n' + "\n".join(cells) + "\n</div>\n"
