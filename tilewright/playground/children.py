"""Work on programs nobody has checked: each request in a process of its own, with limits.

The processes are forked from one that has everything imported (multiprocessing's fork server; on
systems without it each one starts anew). So a compile that hangs, crashes or takes all memory costs
one answer, and what is no longer wanted is killed without a loss. A child sends bytes, which
nobody unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from tilewright.runtime.interrupts import no_interrupts

GIB = 1 << 30
_POLL = 0.1  # seconds between looks at whether the answer is still wanted


class Stopped(Exception):
    """A request took more time or memory than it may, or its process crashed: says which."""


class Unwanted(Exception):
    """Whoever asked has gone."""


@dataclass(frozen=True)
class Limits:
    """Of one request: seconds by the clock, bytes of memory."""

    seconds: float = 30.0
    memory: int = 4 * GIB


@dataclass
class Children:
    """Answers requests in child processes, at most ``at_once`` at a time, and keeps answers.

    ``entry`` runs in the child: it takes the request's text and gives the answer's bytes. Answers
    are kept by the request's hash, up to ``kept_bytes``; those that ``keep`` refuses are not.
    """

    entry: Callable[[str], bytes]
    limits: Limits = field(default_factory=Limits)
    at_once: int = 2
    kept_bytes: int = 64 << 20
    preload: Sequence[str] = ("tilewright.playground.warm",)

    def __post_init__(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        if "forkserver" in methods:
            self._context.set_forkserver_preload(list(self.preload))
        self._room = threading.Semaphore(self.at_once)
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_size = 0
        self._running: list[Any] = []
        self._lock = threading.Lock()
        self._start = threading.Lock()  # the fork server takes one request at a time

    def begin(self) -> None:
        """Starts the process that others are forked from, if there is one, without waiting."""
        if self._context.get_start_method() == "forkserver":
            with no_interrupts():
                forkserver.ensure_running()

    def end(self) -> None:
        """Kills what works on a request; whoever waits for it gets Stopped."""
        with self._lock:
            running = tuple(self._running)
        for child in running:
            _kill(child)

    def answer(
        self,
        request: str,
        wanted: Callable[[], bool] = lambda: True,
        keep: Callable[[bytes], bool] = lambda _: True,
    ) -> tuple[bytes, bool]:
        """The answer, and whether it was kept from before.

        ``wanted`` is asked again and again; when it says no, the child is killed and Unwanted
        raised. Raises Stopped where there is no answer.
        """
        key = hashlib.sha256(request.encode()).hexdigest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], True
        while not self._room.acquire(timeout=_POLL):
            if not wanted():
                raise Unwanted
        try:
            answer = self._run(request, wanted)
        finally:
            self._room.release()
        if keep(answer):
            self._keep(key, answer)
        return answer, False

    def _keep(self, key: str, answer: bytes) -> None:
        with self._lock:
            if key not in self._kept and len(answer) <= self.kept_bytes // 4:
                self._kept[key] = answer
                self._kept_size += len(answer)
            while self._kept_size > self.kept_bytes:
                self._kept_size -= len(self._kept.popitem(last=False)[1])

    def _run(self, request: str, wanted: Callable[[], bool]) -> bytes:
        ours, theirs = self._context.Pipe(duplex=False)
        child = self._context.Process(
            target=_child, args=(self.entry, request, theirs, self.limits), daemon=True
        )
        try:
            with self._start, no_interrupts():  # it may have to start the fork server anew
                child.start()
        except (OSError, EOFError) as error:
            ours.close()
            theirs.close()
            raise Stopped(f"no process for the request could be started: {error}") from None
        theirs.close()
        with self._lock:
            self._running.append(child)
        try:
            return self._wait(child, ours, wanted)
        finally:
            _kill(child)
            child.join(5)
            with self._lock:
                self._running.remove(child)
            ours.close()

    def _wait(self, child: Any, ours: Any, wanted: Callable[[], bool]) -> bytes:
        end = time.monotonic() + self.limits.seconds
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Stopped(
                    f"stopped after {self.limits.seconds:g} s: choose smaller sizes, or start the "
                    "playground with more (--seconds)"
                )
            if not wanted():
                raise Unwanted
            ready = wait([ours, child.sentinel], timeout=min(_POLL, left))
            if ours in ready:
                try:
                    answer: bytes = ours.recv_bytes()
                except (EOFError, OSError):  # ended without an answer, or amid it
                    child.join(5)
                    raise self._ended(child.exitcode) from None
                return answer
            if ready and not ours.poll():
                child.join(5)
                raise self._ended(child.exitcode)

    def _ended(self, code: int | None) -> Stopped:
        """Why a child has no answer. Signals have negative codes."""
        gibibytes = f"{self.limits.memory / GIB:g} GiB"
        if code == _OUT_OF_MEMORY:
            return Stopped(
                f"stopped at {gibibytes} of memory: choose smaller sizes, or start the playground "
                "with more (--memory)"
            )
        if code is not None and code < 0:
            number = -code
            known = {int(s) for s in signal.Signals}
            name = signal.Signals(number).name if number in known else str(number)
            return Stopped(
                f"the process that worked on the program crashed ({name}); its limit is "
                f"{gibibytes} of memory. A crash without that is a bug of the compiler: "
                "please report the program"
            )
        return Stopped(f"the process that worked on the program ended (exit code {code})")


_OUT_OF_MEMORY = 86
_OUTLIVES = 5  # seconds that a child may go on without its server


def _child(entry: Callable[[str], bytes], request: str, pipe: Connection, limits: Limits) -> None:
    """The whole life of a child."""
    if hasattr(os, "setsid"):
        os.setsid()  # what it starts is killed with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    if hasattr(signal, "SIGALRM"):  # where the server has gone, nobody else stops it
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(limits.seconds) + _OUTLIVES)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    _limit(limits)
    try:
        answer = entry(request)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    pipe.send_bytes(answer)
    pipe.close()
    os._exit(0)  # threads of a compiler may still sleep


def _limit(limits: Limits) -> None:
    try:
        import resource
    except ImportError:  # not a Unix
        return
    seconds = int(limits.seconds * (os.cpu_count() or 1)) + 5  # of all threads
    wanted = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":  # elsewhere it does not count what is mapped
        wanted.append((resource.RLIMIT_DATA, limits.memory))
    for kind, value in wanted:
        _, most = resource.getrlimit(kind)
        least = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (least, least))


def _kill(child: Any) -> None:
    """Kills a child with all that it started, also where the child itself has gone."""
    if child.exitcode is None:
        child.kill()  # first, for it may have no group yet
    if hasattr(os, "killpg"):
        # its group outlives it: getpgid of a process that was waited for would know nothing
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def as_json(data: Any) -> bytes:
    """Answers as they are sent."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
