"""Trials on this machine: a process for each, forked from a server that has everything imported.

A child that crashes, hangs or takes too much memory costs its own trial. Children die with the
server, and the server with the tuner, however that ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from tilewright.runtime import threads
from tilewright.runtime.bundle.active import use_bundle
from tilewright.runtime.interrupts import no_interrupts
from tilewright.runtime.tuning.device import device_fingerprint
from tilewright.runtime.tuning.trial import Outcome, run_trial
from tilewright.runtime.tuning.workers import Done, Job, Run, failed, stopped

MEMORY_SHARE = 0.8  # of what is free when a trial begins
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
_STARTING = 30.0  # seconds more that the first trial may take: the server imports everything


@dataclass
class _Running:
    job: Job
    process: ForkServerProcess
    pipe: Connection
    start: float
    limit: float


class LocalWorkers:
    """Runs up to ``slots`` jobs at once, each at most ``timeout`` seconds and in ``memory`` bytes
    (None: most of what is free). ``run`` is what a child calls: something that it can import by
    name."""

    def __init__(
        self,
        slots: int = 1,
        timeout: float = 30.0,
        gpu: bool = False,
        *,
        memory: int | None = None,
        run: Run = run_trial,
    ) -> None:
        self.slots, self.timeout, self.memory, self.run = slots, timeout, memory, run
        self.device = device_fingerprint(gpu)
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "tilewright.runtime.tuning.preload"])
        self._waiting: list[Job] = []
        self._running: list[_Running] = []
        self._first = True

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.clear()
        for each in self._running:
            each.process.kill()
            each.process.join()
        self._running.clear()

    def submit(self, job: Job) -> None:
        """Starts a job, or has it wait for a free slot."""
        self._waiting.append(job)
        self._start()

    def wait(self, seconds: float) -> Sequence[Done]:
        """The jobs that have ended; after ``seconds`` at the latest."""
        end = time.monotonic() + seconds
        while True:
            found = self._ended()
            self._start()
            left = end - time.monotonic()
            if found or left <= 0 or not self._running:
                return found
            limits = [each.start + each.limit - time.monotonic() for each in self._running]
            wait([each.pipe for each in self._running], max(0.0, min(left, *limits)))

    def _start(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            job = self._waiting.pop(0)
            ours, theirs = self._context.Pipe(duplex=False)
            limits = threads.num_threads(), self.memory or _free_memory()
            arguments = theirs, self.run, job, limits
            process = self._context.Process(target=_child, args=arguments, daemon=True)
            limit = job.limit(self.timeout) + (_STARTING if self._first else 0.0)
            self._first = False
            with _no_main_module(), no_interrupts():
                process.start()
                self._running.append(_Running(job, process, ours, time.monotonic(), limit))
            theirs.close()

    def _ended(self) -> list[Done]:
        found = []
        for each in tuple(self._running):
            seconds = time.monotonic() - each.start
            done = self._result(each, seconds)
            if done is not None:
                self._running.remove(each)
                found.append(done)
        return found

    def _result(self, each: _Running, seconds: float) -> Done | None:
        """What came of a job, None while it runs."""
        if each.pipe.poll():
            try:
                outcomes = each.pipe.recv()
            except (EOFError, OSError):
                each.process.join()
                state, reason = _why_ended(each.process.exitcode)
                return failed(each.job, state, reason, seconds)
            each.process.join()
            return Done(each.job, tuple(outcomes), seconds)
        if seconds > each.limit:
            each.process.kill()
            each.process.join()
            return stopped(each.job, self.timeout, seconds)
        return None


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Children begin by running the script that this process was started with, once more, unless
    there is none: what they need is imported by name."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _why_ended(code: int | None) -> tuple[str, str]:
    """State and reason of a process that ended without an answer."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        state = "memory" if -code == signal.SIGKILL else "crash"
        return state, f"ended by {name}" + (
            ", as when memory runs out" if state == "memory" else ""
        )
    return "crash", f"ended with exit code {code}"


def _child(pipe: Connection, run: Run, job: Job, limits: tuple[int, int]) -> None:
    """The process of a job. ``limits``: threads, bytes."""
    count, memory = limits
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where another library has unblocked it
    _die_with_server(pipe)
    _limit_memory(memory)
    threads.start_over()
    threads.set_num_threads(count)
    import torch

    torch.set_num_threads(count)
    use_bundle(None)  # what is measured is compiled here
    try:
        outcomes = run(job.task, job.choices, job.effort, job.folder)
    except MemoryError as error:
        outcomes = [Outcome("memory", reason=f"out of memory {error}") for _ in job.choices]
    except Exception as error:  # whatever a candidate does costs its trial and nothing else
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        outcomes = [Outcome("error", reason=text) for _ in job.choices]
    with suppress(BrokenPipeError):
        pipe.send(outcomes)
    pipe.close()
    os._exit(0)  # no destructors: what they would do is of no use, and they may hang


def _die_with_server(pipe: Connection) -> None:
    """With the fork server, which dies with the tuner; and at once if that has gone already."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    # A server ends when nobody holds the other end of one of its pipes any more. Its children do,
    # so that they could have children, too: one that hangs would keep the server, and so itself.
    server: Any = getattr(forkserver, "_forkserver", None)
    held = getattr(server, "_forkserver_alive_fd", None)
    if held is not None:
        server._forkserver_alive_fd = None
        os.close(held)
    reader = select.poll()
    reader.register(pipe.fileno(), 0)
    if reader.poll(0):  # the tuner's end of the pipe is closed
        os._exit(1)


def _limit_memory(limit: int) -> None:
    """Allocations beyond so many bytes fail, in this process."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _free_memory() -> int:
    """Bytes that a trial may take, so that the machine does not begin to swap."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1 << 62
    return int(free * 1024 * MEMORY_SHARE)
