"""Small pieces of Markdown that the generated pages share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

WRITTEN = "<!-- Written by `python -m tests.docs.pages` from {source}; a test compares. -->\n"


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: reStructuredText's double backticks become single ones."""
    return inspect.cleandoc(docstring or "").replace("``", "`")


def sentence(docstring: str | None) -> str:
    """The first sentence, on one line."""
    text = " ".join(prose(docstring).split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z])", text, maxsplit=1)[0]


def cell(text: str) -> str:
    """Text inside a table, where a bar would end a cell and a line a row."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    texts = ["| " + " | ".join(map(cell, line)) + " |" for line in lines]
    return "\n".join([texts[0], "|---" * len(lines[0]) + "|", *texts[1:]]) + "\n"


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.strip(chr(10))}\n```\n"


def anchor(heading: str) -> str:
    """How the site (and GitHub) name a heading's anchor."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
