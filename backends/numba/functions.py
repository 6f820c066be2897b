"""The functions that a kernel's text is divided into and the constants that it names, those with
the same text being one."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.numba.text import PythonText


class Functions:
    """Helper functions and constants in the order in which they are first needed."""

    def __init__(self, text: PythonText) -> None:
        self.text = text
        self.source: list[str] = []
        self.known: dict[str, str] = {}  # parameters and body, or expression -> name

    def add(self, hint: str, parameters: Sequence[str], body: Sequence[str]) -> str:
        """The name of the function with these parameters and this body (indented lines)."""
        head = ", ".join(parameters)
        key = "\n".join([head, *body])
        if key not in self.known:
            self.known[key] = name = self.text.reserve(hint)
            self.source += ["@jit", f"def {name}({head}):", *body, "", ""]
        return self.known[key]

    def constant(self, hint: str, expression: str) -> str:
        """The name of a constant of the module, computed once when it is loaded."""
        if expression not in self.known:
            self.known[expression] = name = self.text.reserve(hint)
            self.source += [f"{name} = {expression}", "", ""]
        return self.known[expression]
