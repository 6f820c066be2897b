"""A layout, or a packing of low-bit codes, as a picture."""

from __future__ import annotations

from typing import Any

from tilewright.ir import layout_picture as picture
from tilewright.ir.packing import Packing
from tilewright.ir.reader import read_layout
from tilewright.playground.request import Request


def answer(request: Request) -> dict[str, Any]:
    """``layout`` of the request is an expression such as ``local(2, 1).spatial(8, 4)``, or a
    packing such as ``quads(4, 2) lanes 16 group 32``."""
    text = request.layout.strip()
    if " lanes " in text and "modes(" not in text:
        packed = Packing.parse(text)
        return {
            "text": str(packed),
            "kind": "packing",
            "summary": picture.packing_summary(packed),
            "svg": picture.packing_svg(packed),
        }
    layout = read_layout(text)
    return {
        "text": str(layout),
        "kind": "layout",
        "summary": picture.summary(layout),
        "svg": picture.layout_svg(layout),
    }
