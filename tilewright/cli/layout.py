"""``tilewright layout``: which lane holds which element, which bit of a code lies where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli.output import note, say
from tilewright.ir import layout_picture as picture
from tilewright.ir.dtypes import TABLE
from tilewright.ir.errors import SettingError, known_words
from tilewright.ir.packing import Packing
from tilewright.ir.reader import read_layout


def layout(
    text: Annotated[
        str | None,
        typer.Argument(metavar="LAYOUT", help="For example 'local(2, 1).spatial(8, 4)'."),
    ] = None,
    packing: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Instead: 'quads(4, 2) lanes 16 group 32'."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show the bits of a lane, for this dtype.")
    ] = None,
    lane: Annotated[int, typer.Option(metavar="N", help="The lane that --dtype shows.")] = 0,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it there, too.")] = None,
) -> None:
    """Draw the layout of a register tile, or the packing of low-bit codes in words."""
    if packing is not None and text is None and dtype is None:
        packed = Packing.parse(packing)
        say(picture.packing_text(packed))
        if svg is not None:
            _write(svg, picture.packing_svg(packed))
        return
    if packing is not None or text is None:
        raise SettingError("name one thing to draw: a LAYOUT (and --dtype), or --packing TEXT")
    drawn = read_layout(text)
    say(picture.layout_text(drawn))
    if dtype is not None:
        if dtype not in TABLE:
            raise SettingError(f"unknown dtype {dtype}{known_words(dtype, TABLE)}")
        say("\n" + picture.bits_text(drawn, TABLE[dtype].bits, lane))
    if svg is not None:
        _write(svg, picture.layout_svg(drawn))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(
            f"--svg: cannot write {str(path)!r}: {error.strerror}; name a file in a folder that is "
            "there and may be written to"
        ) from None
    note(f"drawn: {path}")
