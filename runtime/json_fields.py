"""Checked reading of JSON that came from outside: every field by name, kind and bounds.

Whatever does not fit is an error of the caller's class, which names the place in the file. Nothing
here decides what a field means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tilewright.ir.errors import TilewrightError

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MOST = 1 << 62  # numbers that 64 bits hold with room to add
_KINDS = {str: "a text", int: "a number", list: "a list", dict: "an object", float: "a number"}


class Fields:
    """One JSON object at a ``place`` of a file; ``error`` is what a wrong field raises."""

    def __init__(self, value: object, place: str, error: type[TilewrightError]) -> None:
        self.place, self.error = place, error
        if not isinstance(value, dict):
            raise error(f"{place}: an object is expected, it is {_kind(value)}")
        self.value: dict[str, Any] = value

    def refuse(self, name: str, rule: str) -> TilewrightError:
        """The error for a field, to be raised."""
        return self.error(f"{self.place}: {name!r} {rule}")

    def text(self, name: str, pattern: re.Pattern[str] | None = None, most: int = 1 << 20) -> str:
        """A text that matches a pattern as a whole."""
        found: str = self._of(name, str)
        if len(found) > most or (pattern is not None and not pattern.fullmatch(found)):
            raise self.refuse(name, f"is {found[:60]!r}, which no {name} looks like")
        return found

    def number(self, name: str, least: int = 0, most: int = MOST) -> int:
        """A whole number within bounds."""
        return self._bounded(name, self._of(name, int), least, most)

    def decimal(self, name: str) -> float:
        """A finite number that is not negative."""
        found = self.value.get(name)
        good = isinstance(found, int | float) and not isinstance(found, bool)
        if not good or not 0 <= found <= 1e300:  # type: ignore[operator]
            raise self.refuse(name, f"must be a number of at least 0, it is {_kind(found)}")
        return float(found)  # type: ignore[arg-type]

    def flag(self, name: str) -> bool:
        """True or false."""
        found = self.value.get(name)
        if not isinstance(found, bool):
            raise self.refuse(name, f"must be true or false, it is {_kind(found)}")
        return found

    def items(self, name: str, most: int = 1 << 20) -> list[Any]:
        """A list of anything."""
        found: list[Any] = self._of(name, list)
        if len(found) > most:
            raise self.refuse(name, f"has {len(found)} entries, at most {most} are allowed")
        return found

    def texts(self, name: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        """A list of texts that match a pattern."""
        found = self.items(name)
        for text in found:
            fits = isinstance(text, str) and len(text) < 4096
            if not fits or (pattern is not None and not pattern.fullmatch(text)):
                raise self.refuse(name, f"holds {str(text)[:60]!r}, which does not belong there")
        return tuple(found)

    def numbers(self, name: str, least: int = 0, most: int = MOST) -> tuple[int, ...]:
        """A list of whole numbers within bounds."""
        found = self.items(name)
        for number in found:
            if not isinstance(number, int) or isinstance(number, bool):
                raise self.refuse(name, f"holds {_kind(number)} where numbers are expected")
            self._bounded(name, number, least, most)
        return tuple(found)

    def inside(self, name: str) -> Fields:
        """The object in a field."""
        return Fields(self.value.get(name), f"{self.place}, {name!r}", self.error)

    def objects(self, name: str, most: int = 1 << 20) -> Iterator[Fields]:
        """The objects in a list."""
        for at, value in enumerate(self.items(name, most)):
            yield Fields(value, f"{self.place}, {name!r}[{at}]", self.error)

    def entries(self, name: str) -> dict[str, Any]:
        """An object by its names."""
        found: dict[str, Any] = self._of(name, dict)
        return found

    def counts(self, name: str) -> dict[str, int]:
        """An object from identifiers to numbers of at least 0."""
        found = self.entries(name)
        for key, number in found.items():
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not IDENTIFIER.fullmatch(key) or not whole or not 0 <= number <= MOST:
                raise self.refuse(name, f"holds {key[:60]!r}, which is no name with a number")
        return found

    def _of(self, name: str, kind: type) -> Any:
        found = self.value.get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.refuse(name, f"must be {_KINDS[kind]}, it is {_kind(found)}")
        return found

    def _bounded(self, name: str, number: int, least: int, most: int) -> int:
        if not least <= number <= most:
            raise self.refuse(name, f"is {number}, it must lie between {least} and {most}")
        return number


def parse_object(data: bytes, place: str, error: type[TilewrightError]) -> Fields:
    """The object that a file's bytes hold as JSON in UTF-8."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        if _SURROGATE.search(data):  # half a character: no file and no hash can take it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as problem:
        raise error(f"{place} is damaged: it is not JSON ({str(problem)[:200]})") from None
    return Fields(value, place, error)


def check_version(
    fields: Fields, schema: str, version: int, what: str, advice: str = "update Tilewright"
) -> None:
    """Refuses files of another kind, and those of a newer version."""
    if fields.value.get("schema") != schema:
        found = str(fields.value.get("schema"))[:60]
        raise fields.error(
            f"{fields.place} is not {what}: its schema is {found!r}, expected {schema!r}"
        )
    found_version = fields.number("version", least=1)
    if found_version > version:
        raise fields.error(
            f"{fields.place} is {what} of version {found_version}; this Tilewright knows versions "
            f"up to {version}: {advice}"
        )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    return _KINDS.get(type(value), "something else")
