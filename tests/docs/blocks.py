"""The code blocks of a page as steps to run, the output it shows after them, comparing and renewing
that output. Runs nothing.

A ``python`` block is a step. In a ``console`` block, lines that begin with ``$`` are steps, and the
text up to the next one is what they print; lines of a block without any ``$`` only say how a
command is used. A ``text`` block right after a step shows what that step prints. ``…`` stands for
any lines, or within a line for any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ELIDED = "…"
NOT_RUN = re.compile(r"\*Not run by the tests: (?P<reason>[^*\n]+)\.\*\s*\Z")
_FENCED = re.compile(r"^```(\w+)\n(.*?)\n?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """Output that a page shows: its text, between ``start`` and ``end`` of the page."""

    text: str
    start: int
    end: int

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
        """True if no line is left out."""
        return all(line.strip() != ELIDED for line in self.text.split("\n"))


@dataclass(frozen=True)
class Step:
    """Something that a page says to do: ``kind`` is python, command or usage (read, not run).

    ``line`` is where it stands, from 1. ``not_run`` is the reason that the page gives, if it does.
    """

    kind: str
    text: str
    line: int
    not_run: str = ""
    shown: Shown | None = None


def steps(page: str) -> list[Step]:
    """What the page says to do, in order, with the output shown after each."""
    out: list[Step] = []
    end = 0
    for found in _FENCED.finditer(page):
        between, end = page[end : found.start()], found.end()
        marked = NOT_RUN.search(between)
        reason = marked["reason"] if marked else ""
        line = page.count("\n", 0, found.start(2)) + 1
        if found[1] == "python":
            out.append(Step("python", found[2], line, reason))
        elif found[1] == "console":
            out += _console(found[2], found.start(2), line, reason)
        elif found[1] == "text" and out and not between.strip():
            last = out[-1]
            if last.kind != "usage" and not last.not_run and last.shown is None:
                shown = Shown(found[2], found.start(2), found.end(2))
                out[-1] = Step(last.kind, last.text, last.line, shown=shown)
    return out


def _console(text: str, start: int, line: int, reason: str) -> Iterator[Step]:
    """Commands with what they print; a block without ``$`` is one step of usage."""
    if not text.startswith("$ "):
        yield Step("usage", text, line, reason)
        return
    for part in re.finditer(r"^\$ (.*)\n?((?:^(?!\$ ).*\n?)*)", text, re.MULTILINE):
        at = line + text.count("\n", 0, part.start())
        printed = part[2].rstrip("\n")
        begin = start + part.start(2)
        shown = Shown(printed, begin, begin + len(printed)) if printed else None
        yield Step("command", part[1], at, reason, shown)


def missing(shown: Shown, output: str) -> list[str]:
    """The first segment that does not follow those before it in the output; empty if all do."""
    lines = output.rstrip("\n").split("\n")
    if shown.whole:
        wanted = shown.text.split("\n")
        return [] if len(lines) == len(wanted) and _fits(lines, wanted) else wanted
    at = 0
    for segment in shown.segments:
        found = _find(lines, segment, at)
        if found is None:
            return segment
        at = found + len(segment)
    return []


def _fits(lines: list[str], segment: list[str]) -> bool:
    return all(map(_same, lines, segment))


def _same(line: str, shown: str) -> bool:
    if ELIDED not in shown:
        return line.rstrip() == shown.rstrip()
    pattern = ".*".join(re.escape(part) for part in shown.split(ELIDED))
    return re.fullmatch(pattern, line) is not None


def _find(lines: list[str], segment: list[str], start: int) -> int | None:
    last = len(lines) - len(segment)
    starts = range(start, last + 1)
    return next((i for i in starts if _fits(lines[i : i + len(segment)], segment)), None)


def renewed(shown: Shown, output: str) -> str:
    """The text as the output has it now; what still fits stays.

    A segment becomes the lines, after those of the one before, that are most like it. Raises
    LookupError if none are: then a person has to choose another excerpt.
    """
    if not missing(shown, output):
        return shown.text
    lines = output.rstrip("\n").split("\n")
    if shown.whole:
        return "\n".join(lines)
    new: list[list[str]] = []
    at = 0
    for segment in shown.segments:
        starts = range(at, len(lines) - len(segment) + 1)
        likeness, start = max(((_likeness(lines, i, segment), -i) for i in starts), default=(0, 0))
        if likeness < len(segment) / 2:
            raise LookupError(f"nothing like {segment[0]!r} is printed any more")
        at = len(segment) - start
        new.append(lines[-start:at])
    return "\n".join(_with_segments(shown.text.split("\n"), new))


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
