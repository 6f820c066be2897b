"""From an FX node to the user's Python line that made it."""

from __future__ import annotations

import os
import re

import torch
from torch.fx import Node

from tilewright.ir.errors import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n([^\n]*)')
# layers of torch's and of ours: what called them is what a user looks for
_LAYERS = (os.path.dirname(torch.__file__), os.path.join(os.path.dirname(__file__), "quantize"))


def _frames(node: Node) -> list[tuple[str, str, str, str]]:
    """(file, line, function, text), outermost first; frames inside layers are left out."""
    frames: list[tuple[str, str, str, str]] = _FRAME.findall(node.stack_trace or "")
    return [f for f in frames if not f[0].startswith(_LAYERS)] or frames


def location_of(node: Node) -> Location:
    """The innermost line of the user's code (or of the library they call) that made ``node``."""
    frames = _frames(node)
    if not frames:
        return Location(file="<captured>", text="")
    file, line, _, text = frames[-1]
    return Location(file=file, line=int(line), text=text.strip())


def function_of(node: Node) -> str:
    """The name of the Python function that made ``node``, as an identifier."""
    frames = _frames(node)
    name = re.sub(r"\W+", "_", frames[-1][2]).strip("_") if frames else ""
    return name if name and not name[0].isdigit() else "region"
