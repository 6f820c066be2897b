"""A writer of Python text: lines, blocks, names; nothing about tiles."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Index = tuple[int, ...]
_ATOM = re.compile(r"-?\d+|[A-Za-z_]\w*")


@dataclass(frozen=True)
class Origin:
    """How a variable's name came about: ``stem`` is ``hint`` made unique."""

    hint: str
    stem: str
    suffix: str = ""


class PythonText:
    """Lines of a function's body and the variables named in it."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self.reserved = frozenset((*keyword.kwlist, *dir(builtins), *reserved))
        self.taken = set(self.reserved)
        self.origin: dict[str, Origin] = {}

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head:`` and an indented body, ``pass`` if nothing is written in it."""
        self.line(f"{head}:")
        self.depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1

    def reserve(self, hint: str) -> str:
        """A new name like ``hint`` that is no variable's."""
        return self._unique(identifier(hint), [""])

    def name(self, hint: str) -> str:
        """A new variable like ``hint``."""
        return self.names(hint, [()])[()]

    def names(self, hint: str, indices: Iterable[Index]) -> dict[Index, str]:
        """New variables for a tile's elements: ``x_0_1``, without dimensions of one element."""
        wanted = list(indices)
        varying = [d for d in range(len(wanted[0])) if len({index[d] for index in wanted}) > 1]
        suffixes = ["".join(f"_{index[d]}" for d in varying) for index in wanted]
        base = identifier(hint)
        stem = self._unique(base, suffixes)
        for suffix in suffixes:
            self.origin[stem + suffix] = Origin(base, stem, suffix)
        return {index: stem + suffix for index, suffix in zip(wanted, suffixes, strict=True)}

    def _unique(self, base: str, suffixes: list[str]) -> str:
        number = 0
        while True:
            stem = f"{base}{number or ''}"
            found = {stem, *(stem + suffix for suffix in suffixes)}
            if not self.taken & found:
                self.taken |= found
                return stem
            number += 1

    def bind(self, hint: str, expression: str) -> str:
        """A name for an expression's value: itself if it is a name or an integer already."""
        if is_atom(expression):
            return expression
        name = self.name(hint)
        self.line(f"{name} = {expression}")
        return name


def identifier(hint: str) -> str:
    """A hint as a Python identifier without digits at the end: numbers make names unique."""
    base = re.sub(r"\W", "_", hint).rstrip("0123456789_") or "v"
    return f"v{base}" if base[0].isdigit() else base


def is_atom(expression: str) -> bool:
    """True for a name or an integer literal."""
    return _ATOM.fullmatch(expression) is not None


def product(a: str, b: str) -> str:
    """``a * b`` of atoms, simplified."""
    if "0" in (a, b):
        return "0"
    if "1" in (a, b):
        return b if a == "1" else a
    if _number(a) is not None and _number(b) is not None:
        return str(int(a) * int(b))
    return f"{a} * {b}"


def total(terms: Iterable[str]) -> str:
    """The sum of atoms and products, integers last and added up."""
    names, constant = [], 0
    for term in terms:
        number = _number(term)
        if number is None:
            names.append(term)
        else:
            constant += number
    if not names:
        return str(constant)
    text = " + ".join(names)
    if constant:
        text += f" + {constant}" if constant > 0 else f" - {-constant}"
    return text


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text) else None
