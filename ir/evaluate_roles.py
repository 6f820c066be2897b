"""Roles of a block in the interpreter: regions that run in turns, and the barriers between them.

One role runs at a time, until it waits for a phase that has not ended; then another goes on. If
nobody can, the program hangs, which is an error. Copies end as late as they may: when somebody
waits for the barrier that counts them. ``Clocks`` say what happened before what: a role has seen of
another what that had done before an arrival that it has waited for.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.ir.core import Op
from tilewright.ir.errors import EvaluationError

Agent = int | str  # a role's number, or a barrier's name: what copies for it did
Clocks = dict[Agent, int]


class _Stopped(Exception):
    """Ends a role after an error in another one."""


class Turns:
    """Functions that run one at a time, each in a thread: ``until`` hands on to the next."""

    def __init__(self) -> None:
        self.me = 0
        self._gates: list[threading.Semaphore] = []
        self._alive: set[int] = set()
        self._waiting: set[int] = set()
        self._over = threading.Semaphore(0)
        self._error: Exception | None = None

    def run(self, works: Sequence[Callable[[], Any]]) -> None:
        """Runs all of them to their ends; raises the first error of one."""
        self._gates = [threading.Semaphore(0) for _ in works]
        self._alive, self._error = set(range(len(works))), None
        threads = []
        for number, work in enumerate(works):
            context = contextvars.copy_context()
            given = (self._play, number, work)
            threads.append(threading.Thread(target=context.run, args=given, daemon=True))
        for thread in threads:
            thread.start()
        self._gates[0].release()
        self._over.acquire()
        for thread in threads:
            thread.join()
        self.me = 0
        if self._error is not None:
            raise self._error

    def until(self, ready: Callable[[], bool], hangs: Callable[[], Exception]) -> None:
        """Goes on when ``ready`` says so; raises what ``hangs`` gives if nobody can go on."""
        number = self.me
        while not ready():
            self._waiting.add(number)
            if not self._alive or self._waiting >= self._alive:
                raise hangs()
            self._hand_on(number)
            self._gates[number].acquire()
            self.me = number
            if self._error is not None:
                raise _Stopped
        self._waiting.clear()

    def _play(self, number: int, work: Callable[[], Any]) -> None:
        self._gates[number].acquire()
        self.me = number
        self._waiting.clear()
        try:
            if self._error is None:
                work()
        except _Stopped:
            pass
        except Exception as error:
            self._error = self._error or error
        self._alive.discard(number)
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if not self._alive:
            self._over.release()
            return
        later = [n for n in self._alive if n > number]
        self._gates[min(later or self._alive)].release()


@dataclass
class Barrier:
    """One barrier in shared memory: what its phase still lacks, and copies that it counts."""

    name: str
    agent: str  # what its copies do, in clocks
    arrivals: int
    missing: int
    bytes: int = 0
    ended: int = 0  # phases
    copies: list[Callable[[], int]] = field(default_factory=list)
    landed: int = 0
    arriving: Clocks = field(default_factory=dict)
    done: Clocks = field(default_factory=dict)

    def arrive(self, op: Op, times: int, clocks: Clocks, expected: int = 0) -> None:
        """Arrivals of a role. Raises EvaluationError if the phase takes fewer."""
        if times > self.missing:
            message = f"{times} arrivals at {self.name}, whose phase lacks {self.missing} of"
            raise EvaluationError(f"{op.name}: {message} {self.arrivals}", op.loc)
        self.missing -= times
        self.bytes += expected
        join(self.arriving, clocks)
        self._end()

    def land(self) -> None:
        """All copies on their way end."""
        copies, self.copies = self.copies, []
        for copy in copies:
            self.landed += 1
            self.bytes -= copy()
            self.arriving[self.agent] = self.landed
        self._end()

    def _end(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.ended += 1
            self.missing = self.arrivals
            self.done = dict(self.arriving)

    def lacks(self) -> str:
        """What its phase waits for, in words."""
        return f"{self.name} lacks {self.missing} of {self.arrivals} arrivals, {self.bytes} bytes"


def join(into: Clocks, other: Clocks) -> None:
    """What the other has seen has been seen."""
    for agent, time in other.items():
        into[agent] = max(into.get(agent, 0), time)


@dataclass
class Order:
    """What happened before what between the roles of a block. Without roles there is one, 0."""

    turns: Turns = field(default_factory=Turns)
    now: dict[Agent, int] = field(default_factory=dict)  # of the accesses of a role
    base: dict[Agent, int] = field(default_factory=dict)  # since the role's last barrier
    seen: dict[Agent, Clocks] = field(default_factory=dict)
    roles: bool = False

    @property
    def me(self) -> int:
        return self.turns.me

    def stamp(self) -> tuple[Agent, int]:
        """What an access of the role that runs carries."""
        return self.me, self.now.get(self.me, 1)

    def barrier(self) -> None:
        """The role's lanes see what the others did before."""
        self.now[self.me] = self.base[self.me] = self.now.get(self.me, 1) + 1

    def release(self) -> Clocks:
        """What whoever waits for this has seen."""
        clocks = self.seen.setdefault(self.me, {})
        clocks[self.me] = self.now.get(self.me, 1)
        self.now[self.me] = clocks[self.me] + 1
        return dict(clocks)

    def acquire(self, clocks: Clocks) -> None:
        """The role has waited for that."""
        join(self.seen.setdefault(self.me, {}), clocks)

    def before(self, stamp: tuple[Agent, int], same_lane: bool) -> bool:
        """Whether an access is ordered before what a lane of this role does now."""
        agent, time = stamp
        if agent == self.me:
            return same_lane or time < self.base.get(agent, 0)
        return self.seen.get(self.me, {}).get(agent, 0) >= time
