"""Plain data as the classes that describe a report, or a ValueError that names the field.

A report may come from anywhere: what is read here can be shown, drawn and compared without a
further look at a number.
"""

from __future__ import annotations

import dataclasses
import types
from dataclasses import MISSING
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# Nothing that is measured is nearer to 0 or farther from it, and quotients and products of two
# such numbers are still finite floats.
LEAST, MOST = 1e-30, 1e30


def made(kind: Any, data: Any, where: str) -> Any:
    """``data`` as what a type annotation says. Raises ValueError for what it is not."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return _plain(data, where)
    if origin is Annotated:
        rule = args[1]
        if rule == "or -1" and data == -1:
            return float(data)
        return _held(made(args[0], data, where), rule, where)
    if origin is types.UnionType:
        return None if data is None else made(args[0], data, where)
    if origin is list:
        items = enumerate(_is(list, data, where))
        return [made(args[0], each, f"{where}[{at}]") for at, each in items]
    if origin is dict:
        named = {_text(k, f"a name in {where}"): v for k, v in _is(dict, data, where).items()}
        return {key: made(args[1], value, f"{where}.{key}") for key, value in named.items()}
    if dataclasses.is_dataclass(kind):
        return _object(kind, _is(dict, data, where), where)
    return _scalar(kind, data, where)


def _object(kind: Any, given: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not MISSING}
    if missing := set(hints) - set(given) - optional:
        raise ValueError(f"{where} has no {', '.join(sorted(missing))}")
    return kind(**{k: made(h, given[k], f"{where}.{k}") for k, h in hints.items() if k in given})


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is str:
        return _text(data, where)
    if kind not in (int, float):
        return _is(kind, data, where)
    number = _is((int, float) if kind is float else int, data, where)
    if number and not LEAST <= number <= MOST:  # NaN, too, is no number between them
        raise ValueError(
            f"{where} is {_shown(number)}; 0 or a number from {LEAST:g} to {MOST:g} is expected"
        )
    return float(number) if kind is float else number


def _held(value: Any, rule: str | tuple[str, ...], where: str) -> Any:
    """``rule`` is "above 0" or "or -1", of numbers, or the words that are known."""
    if rule == "above 0" and not value:
        raise ValueError(f"{where} is {value}; a number above 0 is expected")
    if isinstance(rule, tuple) and value not in rule:
        raise ValueError(f"{where} is {_shown(value)}; known: {', '.join(rule)}")
    return value


def _plain(data: Any, where: str) -> Any:
    """What is shown as it is: text, a number, or nothing."""
    if isinstance(data, str):
        return _text(data, where)
    if isinstance(data, int | float) and not abs(data) <= MOST:
        raise ValueError(f"{where} is {_shown(data)}; a number that is finite is expected")
    if isinstance(data, list | dict):
        raise ValueError(f"{where} is {type(data).__name__}; text or a number is expected")
    return data


def _text(data: Any, where: str) -> str:
    """Text that can be written: JSON may spell halves of characters that no file can hold."""
    text: str = _is(str, data, where)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is no text: {_shown(text)}") from None
    return text


def _is(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where} is {_shown(data) if data is None else type(data).__name__}")
    return data


def _shown(data: Any) -> str:
    """A value within a message: in ASCII, as JSON has it, and short."""
    text = "null" if data is None else ascii(data)
    return text if len(text) < 60 else f"{text[:57]}…"
