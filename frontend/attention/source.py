"""Where in the user's score or mask function something happened, and how to write it instead."""

from __future__ import annotations

import linecache
import os
import sys
from types import FrameType

import torch

from tilewright.ir.errors import Location, UnsupportedError

_SKIPPED = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor the tracer's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    return frame


def here(exact: bool = False) -> Location:
    """The user's line that is being run; with ``exact`` its column and text too."""
    frame = user_frame()
    if frame is None:
        return Location(file="<unknown>")
    file, line = frame.f_code.co_filename, frame.f_lineno
    if not exact:
        return Location(file=file, line=line)
    text = linecache.getline(file, line).rstrip("\n")
    at = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    column = at[2] + 1 if at[2] is not None and at[0] == line else 0
    return Location(file=file, line=line, column=column, text=text)


def definition(function: object) -> Location:
    """The line where a function begins."""
    while True:
        inner = getattr(function, "func", None) or getattr(function, "__func__", None)
        if inner is None:
            break
        function = inner
    code = getattr(function, "__code__", None)
    if code is None:
        return Location(file=f"<{type(function).__name__}>")
    text = linecache.getline(code.co_filename, code.co_firstlineno).rstrip("\n")
    return Location(file=code.co_filename, line=code.co_firstlineno, text=text)


def refused(what: str, instead: str) -> UnsupportedError:
    """The error for the line being run: what cannot be traced, and how to write it."""
    return UnsupportedError(f"{what}; {instead}" if instead else what, here(exact=True))


WHERE = (
    "write torch.where(condition, a, b) for a choice, and &, |, ~ for and, or, not "
    "(a chained a <= b < c is two comparisons joined by &)"
)
NUMBER = "keep it a tensor: the function is run once for all positions, not once for each of them"
OUTSIDE = "compute it before and close over the number, or use the tensor itself"
