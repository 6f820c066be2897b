"""Things made once, at the first look-up."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

from tilewright.runtime.locks import Guard

K = TypeVar("K")
V = TypeVar("V")


class Once(dict[K, V]):
    """What is made at the first look-up of a key, by one thread."""

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self.make, self.guard = make, Guard()

    def __missing__(self, key: K) -> V:
        with self.guard.lock:
            if key not in self:
                self[key] = self.make(key)
            return self[key]


def kept_fresh(
    kept: MutableMapping[K, V],
    key: K,
    make: Callable[[], V],
    is_fresh: Callable[[V], bool],
    guard: Guard,
) -> V:
    """What is kept for a key, made again if it is not fresh any more. Many threads at a first call
    make one, not many."""
    found = kept.get(key)
    if found is None or not is_fresh(found):
        with guard.lock:
            found = kept.get(key)
            if found is None or not is_fresh(found):
                found = kept[key] = make()
    return found
