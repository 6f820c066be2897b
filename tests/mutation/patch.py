"""A fault in a process that has everything imported: functions get other code in place.

Importing torch and the compiler takes seconds, a test often milliseconds. So one process collects
the tests and forks for every mutant; the child changes the code of the functions concerned, which
every module, registry and decorator that holds them sees.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

Key = tuple[str, str, int]  # file, qualified name, first line


class LiveFunctions:
    """All functions of this process by where their code stands."""

    def __init__(self) -> None:
        self._by_place: dict[Key, list[FunctionType]] = {}
        for x in gc.get_objects():
            if type(x) is FunctionType:
                self._by_place.setdefault(_key(x.__code__), []).append(x)

    def patch(self, path: str, before: str, after: str) -> bool:
        """Gives the functions of a file the code of its other text. False, and nothing changed, if
        the difference is not inside functions that live: what runs at import."""
        old, new = (compile(text, path, "exec") for text in (before, after))
        try:
            changed = [(self._by_place[_key(a)], b) for a, b in _changed(old, new)]
        except (KeyError, _AtImport):
            return False
        for functions, code in changed:
            for function in functions:
                if function.__code__.co_freevars != code.co_freevars:
                    return False
        for functions, code in changed:
            for function in functions:
                function.__code__ = code
        return bool(changed)


class _AtImport(Exception):
    """The difference is in what runs when a module is imported."""


def _key(code: CodeType) -> Key:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _changed(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Outermost functions of a module's or class's code that differ. Raises _AtImport."""
    ours, theirs = _inner(old), _inner(new)
    if len(ours) != len(theirs) or _own(old) != _own(new):
        raise _AtImport
    for a, b in zip(ours, theirs, strict=True):
        if a == b:
            continue
        if a.co_flags & inspect.CO_OPTIMIZED:
            yield a, b
        else:
            yield from _changed(a, b)


def _inner(code: CodeType) -> list[CodeType]:
    return [x for x in code.co_consts if isinstance(x, CodeType)]


def _own(code: CodeType) -> tuple[object, ...]:
    """What a code object itself does."""
    consts = [(type(x), x) for x in code.co_consts if not isinstance(x, CodeType)]
    return code.co_code, code.co_names, repr(consts)
