"""The tour's commands and the blocks of their output that it shows; comparing and renewing them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

ELIDED = "…"


@dataclass(frozen=True)
class Shown:
    """A block of output: its command, and its text between ``start`` and ``end`` of the page."""

    command: str
    text: str
    start: int
    end: int

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)[1:]

    @property
    def segments(self) -> list[list[str]]:
        """The runs of lines between those left out."""
        parts: list[list[str]] = [[]]
        for line in self.text.split("\n"):
            if line.strip() == ELIDED:
                parts.append([])
            else:
                parts[-1].append(line)
        return [part for part in parts if part]

    @property
    def whole(self) -> bool:
        """True if nothing is left out."""
        return all(line.strip() != ELIDED for line in self.text.split("\n"))


_FENCED = re.compile(r"^```(\w+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def shown_blocks(page: str) -> list[Shown]:
    """Every ``text`` block of a page, with the command of the ``console`` block before it."""
    out, command = [], ""
    for found in _FENCED.finditer(page):
        if found[1] == "console":
            assert found[2].startswith("$ tilewright "), f"not a command: {found[2]}"
            command = found[2].removeprefix("$ ")
        elif found[1] == "text":
            assert command, "a block of output without a command above it"
            out.append(Shown(command, found[2], found.start(2), found.end(2)))
    return out


def python_blocks(page: str) -> list[str]:
    return [found[2] for found in _FENCED.finditer(page) if found[1] == "python"]


def missing(block: Shown, output: str) -> list[str]:
    """The first segment that does not follow those before it in the output; empty if all do."""
    lines = output.rstrip("\n").split("\n")
    if block.whole:
        return [] if lines == block.text.split("\n") else block.text.split("\n")
    at = 0
    for segment in block.segments:
        found = _find(lines, segment, at)
        if found is None:
            return segment
        at = found + len(segment)
    return []


def _find(lines: list[str], segment: list[str], start: int) -> int | None:
    last = len(lines) - len(segment)
    return next((i for i in range(start, last + 1) if lines[i : i + len(segment)] == segment), None)


def renewed(block: Shown, output: str) -> str:
    """The block's text as the output has it now.

    A segment becomes the lines, after those of the one before, that are most like it. Raises
    LookupError if none are: then a person has to choose another excerpt.
    """
    lines = output.rstrip("\n").split("\n")
    if block.whole:
        return "\n".join(lines)
    new: list[list[str]] = []
    at = 0
    for segment in block.segments:
        starts = range(at, len(lines) - len(segment) + 1)
        likeness, start = max(((_likeness(lines, i, segment), -i) for i in starts), default=(0, 0))
        if likeness < len(segment) / 2:
            raise LookupError(f"{block.command}: nothing like {segment[0]!r} is printed any more")
        at = len(segment) - start
        new.append(lines[-start:at])
    return "\n".join(_with_segments(block.text.split("\n"), new))


def _with_segments(lines: list[str], segments: list[list[str]]) -> Iterator[str]:
    """The lines with other segments between those that mark what is left out."""
    waiting = iter(segments)
    inside = False
    for line in lines:
        if line.strip() == ELIDED:
            yield line
        elif not inside:
            yield from next(waiting)
        inside = line.strip() != ELIDED


def _likeness(lines: list[str], start: int, segment: list[str]) -> float:
    """How many lines are alike: 1 for the same apart from numbers, 1/2 for the same first word."""
    pairs = zip(lines[start : start + len(segment)], segment, strict=True)
    return sum(_alike(a, b) for a, b in pairs)


def _alike(a: str, b: str) -> float:
    a, b = (re.sub(r"\d+", "#", line) for line in (a, b))
    if a == b:
        return 1.0
    return 0.5 if a.split()[:1] == b.split()[:1] else 0.0
