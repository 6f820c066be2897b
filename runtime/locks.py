"""Locks that a forked child does not inherit as held, and the one around code generators.

A thread that holds a lock when another one forks is not there in the child: whoever waits for it
there waits for ever. What our locks guard is changed in single steps, so that a child may simply
begin with new ones. LLVM, MLIR and Numba have locks of their own, which nothing can give back, and
Python has one for each module that is being imported: a fork waits until none of them is at work.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from weakref import WeakSet

FORK_WAITS = 60.0  # seconds for code generators; a child that forks later may hang when it compiles


class Guard:
    """Holds a ``lock`` that the same thread may take again, as a signal's handler does that calls
    a kernel. Write ``with guard.lock:``; the guard has to live as long as what it guards."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        # The lock itself, no class of ours around it: an interrupt cannot come between taking it
        # and the block that gives it back.
        self.lock = threading.RLock()
        _guards.add(self)


_guards: WeakSet[Guard] = WeakSet()
# Held while LLVM, MLIR or Numba work and while modules are imported at a first call. Whoever holds
# it waits for no other guard, and no module asks for it while it is imported.
GENERATORS = Guard()


def _before_fork() -> None:
    GENERATORS.lock.acquire(timeout=FORK_WAITS)


def _after_fork_in_parent() -> None:
    with suppress(RuntimeError):  # it took too long: not ours
        GENERATORS.lock.release()


def _after_fork_in_child() -> None:
    for guard in list(_guards):
        guard.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
