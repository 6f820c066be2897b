"""Pieces of Triton expressions: atoms, literals, products."""

from __future__ import annotations

import re
from typing import Any

from tilewright.backends.numba.text import is_atom

VIEWS = ("[:, None]", "[None, :]")  # of a range along a tile's dimension


def view(dim: int, rank: int) -> str:
    """A range's view along dimension ``dim`` of tiles with ``rank`` dimensions."""
    return f"[{', '.join(':' if d == dim else 'None' for d in range(rank))}]"


def is_literal(text: Any) -> bool:
    """True for a number as text."""
    return isinstance(text, str) and bool(
        re.fullmatch(r'-?\d+(\.\d*)?(e[+-]?\d+)?|float\("-?\w+"\)', text)
    )


def atom(text: Any) -> Any:
    """Text that stands as an operand by itself."""
    if not isinstance(text, str) or is_atom(text) or is_literal(text):
        return text if not str(text).startswith("-") else f"({text})"
    if re.fullmatch(r"[\w.]+(\[[^\[\]]*\])?", text) or re.fullmatch(r"tl\.\w+\([^()]*\)", text):
        return text
    return f"({text})"


def product(index: str, stride: str) -> str:
    """An index times a stride."""
    return atom(index) if stride == "1" else f"{atom(index)} * {stride}"


def left(limit: str, index: str) -> str:
    """How many positions there are from an index to a limit."""
    if index == "0":
        return limit if limit.isdigit() else f"tl.cast({limit}, tl.int32)"
    return f"tl.cast({atom(limit)} - {atom(index)}, tl.int32)"
