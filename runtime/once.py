"""Things made once, at the first look-up."""

from __future__ import annotations

from collections.abc import Callable
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
