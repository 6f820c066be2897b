"""The functions that a kernel's text is divided into, those with the same text being one."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.numba.text import PythonText


class Functions:
    """Helper functions in the order in which they are first needed."""

    def __init__(self, text: PythonText) -> None:
        self.text = text
        self.source: list[str] = []
        self.known: dict[str, str] = {}  # parameters and body -> name

    def add(self, hint: str, parameters: Sequence[str], body: Sequence[str]) -> str:
        """The name of the function with these parameters and this body (indented lines)."""
        head = ", ".join(parameters)
        key = "\n".join([head, *body])
        if key not in self.known:
            self.known[key] = name = self.text.reserve(hint)
            self.source += ["@jit", f"def {name}({head}):", *body, "", ""]
        return self.known[key]
