"""Locks that a forked child does not inherit as held, and forks that wait for some of them.

A thread that holds a lock when another one forks is not there in the child: whoever waits for it
there waits for ever. What our locks guard is changed in single steps, so that a child may simply
begin with new ones. Where a child could not take up what a lock stands for, the fork waits for it.
"""

from __future__ import annotations

# A fork runs hooks in the reverse order of their registration, and these modules' take locks of
# their own. Imported here, before ours is registered, they take them once ours has waited: held
# meanwhile, they would stop the very thread that is waited for (imports ask for loggers).
import concurrent.futures.thread
import logging
import os
import threading
from contextlib import suppress
from weakref import WeakSet

_BEFORE_US = concurrent.futures.thread, logging


class Guard:
    """Holds a ``lock`` that the same thread may take again, as a signal's handler does that calls
    a kernel. Write ``with guard.lock:``; the guard has to live as long as what it guards.

    ``fork_waits``: seconds that a fork waits for whoever holds it. A child that is forked later
    may hang in what the lock stands for. Of several, a fork waits for those made first first.
    """

    __slots__ = ("__weakref__", "fork_waits", "lock")

    def __init__(self, fork_waits: float = 0.0) -> None:
        # The lock itself, no class of ours around it: an interrupt cannot come between taking it
        # and the block that gives it back.
        self.lock = threading.RLock()
        self.fork_waits = fork_waits
        _guards.add(self)
        if fork_waits:
            _waited_for.append(self)


_guards: WeakSet[Guard] = WeakSet()
_waited_for: list[Guard] = []


def _before_fork() -> None:
    for guard in _waited_for:
        guard.lock.acquire(timeout=guard.fork_waits)


def _after_fork_in_parent() -> None:
    for guard in reversed(_waited_for):
        with suppress(RuntimeError):  # it took too long: not ours
            guard.lock.release()


def _after_fork_in_child() -> None:
    for guard in list(_guards):
        guard.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
