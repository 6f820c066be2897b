"""The functions that a kernel's text is divided into.

Numba's compile time grows faster than the length of a function (its SSA form takes a pass per
variable), so that loops and chains of some length become functions of their own; those with the same
text are one. LLVM inlines them where it pays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tilewright.backends.numba.text import PythonText

LINES_WORTH_A_FUNCTION = 16  # compiling a function of its own costs as much as so many lines
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


class Functions:
    """Helper functions in the order in which they are first needed."""

    def __init__(self, text: PythonText) -> None:
        self.text = text
        self.source: list[str] = []
        self.known: dict[str, str] = {}  # parameters and body -> name

    def add(self, hint: str, parameters: Sequence[str], body: Sequence[str]) -> str:
        """The name of the function with these parameters and this body."""
        head = ", ".join(parameters)
        key = "\n".join([head, *body])
        if key not in self.known:
            self.known[key] = name = self.text.reserve(hint)
            self.source += ["@jit", *wrapped(f"def {name}(", parameters, "):"), *body, "", ""]
        return self.known[key]

    def outlined(
        self, hint: str, body: Iterable[str], outer: set[str], results: Sequence[str]
    ) -> tuple[str, list[str]]:
        """A function for lines that use the variables ``outer``: its name and what to pass to it.

        Its variables get the names that they would have if there were no others, so that the same
        work on other variables is the same text.
        """
        lines = list(body)
        if results:
            lines += [f"    return {', '.join(results)}"]
        local = PythonText((*self.text.reserved, *self.known.values()))
        stems: dict[str, str] = {}
        passed: list[str] = []

        def rename(found: re.Match[str]) -> str:
            name = found.group()
            origin = self.text.origin.get(name)
            if origin is None:
                return name
            if name in outer and name not in passed:
                passed.append(name)
            if origin.stem not in stems:
                stems[origin.stem] = local.reserve(origin.hint)
            return stems[origin.stem] + origin.suffix

        renamed = [_IDENTIFIER.sub(rename, line) for line in lines]
        parameters = [_IDENTIFIER.sub(rename, name) for name in list(passed)]
        return self.add(hint, parameters, renamed), passed


def wrapped(head: str, items: Sequence[str], tail: str, indent: str = "") -> list[str]:
    """``head item, item, … tail``, on several lines if it is long."""
    line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(line) <= 100:
        return [line]
    lines, inner = [f"{indent}{head}"], f"{indent}    "
    current = inner
    for item in items:
        if len(current) + len(item) + 1 > 100:
            lines.append(current.rstrip())
            current = inner
        current += f"{item}, "
    return [*lines, current.rstrip(), f"{indent}{tail}"]
