"""docs/reference/api.md: the public names with their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import tilewright
from tests.docs.pages.markdown import WRITTEN, fenced, prose, sentence, table
from tilewright.ir.errors import TilewrightError

HEAD = """\
# The Python interface

{written} These names are `tilewright.NAME`, and they are what stays: anything deeper
(`tilewright.ir`, `passes`, `backends`, …) is for those who extend the compiler, and may change.
All load when first used. Errors have [a page of their own](errors.md).

{contents}"""


def page() -> str:
    """The whole page."""
    names = [n for n in tilewright.__all__ if not n.startswith("__") and not _is_error(n)]
    functions = [n for n in names if not inspect.isclass(getattr(tilewright, n))]
    classes = [n for n in names if n not in functions]
    ordered = [*functions, *classes]
    rows = ((f"[`{n}`](#tilewright{n.lower()})", sentence(_object(n).__doc__)) for n in ordered)
    head = HEAD.format(
        written=WRITTEN.format(source="tilewright/__init__.py"),
        contents=table(("name", "is"), rows),
    )
    return "\n".join([head, *(_section(name) for name in ordered)])


def _object(name: str) -> Any:
    return getattr(tilewright, name)


def _is_error(name: str) -> bool:
    found = _object(name)
    return inspect.isclass(found) and issubclass(found, TilewrightError)


def _section(name: str) -> str:
    found = _object(name)
    parts = [f"## tilewright.{name}\n", fenced("text", f"{name}{_signature(found)}"), body(found)]
    if inspect.isclass(found):
        parts += _members(name, found)
    return "\n".join(parts)


def body(found: Any) -> str:
    """The docstring; indented blocks of it stay as they are."""
    return escaped(prose(found.__doc__)) + "\n"


def escaped(text: str) -> str:
    """Brackets are shapes here, never links; outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("[", "\\[") for p in parts)


def _signature(found: Any) -> str:
    """As written, a parameter a line where it is long; the address of a default says nothing."""
    try:
        text = str(inspect.signature(found))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>|<factory>", "…", text)
    text = re.sub(r"'([^']*)'", r"\1", text) if "'" in text else text
    if len(text) <= 90:
        return text
    parameters = ",\n    ".join(_parameters(found))
    result = re.search(r"\) -> (.*)$", text)
    return f"(\n    {parameters},\n)" + (f" -> {result[1]}" if result else "")


def _parameters(found: Any) -> Iterator[str]:
    star = False
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            yield "*"
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        text = re.sub(r"<[\w.]+ object at 0x[0-9a-f]+>|<factory>", "…", str(parameter))
        yield re.sub(r"'([^']*)'", r"\1", text)


def _members(name: str, cls: type) -> Iterator[str]:
    """Public methods and properties of its own, with what they say."""
    rows = []
    for key, value in vars(cls).items():
        target = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        target = target.fget if isinstance(target, property) else target
        documented = inspect.isfunction(target) and target.__doc__
        if key.startswith("_") or not documented:
            continue
        call = "" if isinstance(value, property) else _short(target)
        rows.append((f"`.{key}{call}`", escaped(" ".join(prose(target.__doc__).split()))))
    if rows:
        yield table((f"of a {name}", "is"), rows)


def _short(function: Any) -> str:
    """Names of the parameters only."""
    parameters = inspect.signature(function).parameters.values()
    names = []
    for p in parameters:
        if p.name in ("self", "cls"):
            continue
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        names.append(star + p.name)
    return f"({', '.join(names)})"
