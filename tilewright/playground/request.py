"""What the page may ask for: one JSON object, every field checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tilewright.ir.errors import SettingError

MOST_PROGRAM = 64 << 10  # characters
KINDS = ("forms", "tile", "code", "why", "simulate", "layout", "run")
_MOST_SIZE = 1 << 40
_MOST_WORD = 2000  # characters of any other text
_MOST_PARTS = 64


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_SIZE


def _is_text(value: Any, most: int) -> bool:
    """Whether it is a text that UTF-8 can say: JSON's escapes can give halves of a character."""
    if not isinstance(value, str) or len(value) > most:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_word(value: Any) -> bool:
    return _is_text(value, _MOST_WORD)


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_PARTS and all(map(_is_word, value))


def _are_sizes(value: Any) -> bool:
    few = isinstance(value, dict) and len(value) <= _MOST_PARTS
    return few and all(map(_is_word, value)) and all(map(_is_number, value.values()))


def _is_program(value: Any) -> bool:
    return _is_text(value, MOST_PROGRAM)


@dataclass(frozen=True)
class Request:
    """One question about one program.

    ``passes`` are those to run (None: all); ``rows`` is the row class (0: any number of rows);
    ``kernel`` counts from 0. ``sizes`` may name sizes that the program does not have.
    """

    kind: str
    program: str = ""
    passes: tuple[str, ...] | None = None
    target: str = "host"
    backend: str = ""
    rows: int = 0
    kernel: int = 0
    language: str = "mlir"
    sizes: dict[str, int] = field(default_factory=dict)
    depths: str = ""
    nodes: str = "operations"
    layout: str = ""
    seed: int = 0

    @staticmethod
    def from_json(text: str) -> Request:
        """Raises SettingError, which names the field."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SettingError(f"the request is no JSON: {error}") from None
        if not isinstance(data, dict) or data.get("kind") not in KINDS:
            raise SettingError(f"a request is an object with a kind: {', '.join(KINDS)}")
        known = {f.name for f in fields(Request)}
        for name, value in data.items():
            if name not in known:
                raise SettingError(f"a request has no field {str(name)[:40]!r}")
            holds, what = CHECKS.get(name, (_is_word, f"a text of at most {_MOST_WORD} characters"))
            if not holds(value):
                raise SettingError(f"the request's {name} has to be {what}")
        if data.get("passes") is not None:
            data["passes"] = tuple(data["passes"])
        return Request(**data)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "program": (_is_program, f"a text of at most {MOST_PROGRAM} characters"),
    "passes": (lambda value: value is None or _are_words(value), "a list of names, or null"),
    "rows": (_is_number, "a number"),
    "kernel": (_is_number, "a number"),
    "seed": (_is_number, "a number"),
    "sizes": (_are_sizes, "an object of numbers"),
}
