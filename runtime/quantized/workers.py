"""Work on chunks in threads that each run torch's operations alone.

An operation that torch splits between threads waits for the slowest of them, thousands of times for
a matrix, and several milliseconds each time that a core is busy otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import torch

Work = Callable[[int, int], None]


def in_threads(work: Work, chunks: Iterable[tuple[int, int]]) -> None:
    """``work(first, last)`` for all chunks, in as many threads as torch uses.

    The first exception ends all of it and is raised here.
    """
    todo = list(chunks)
    count = torch.get_num_threads()
    if min(count, len(todo)) < 2:
        for chunk in todo:
            work(*chunk)
        return
    crew = _Crew(work, todo, min(count, len(todo)))
    crew.start()
    # torch's number of threads is one of each thread, but setting it also sets that of threads yet
    # to come, which is put back here
    torch.set_num_threads(count)
    crew.finish()


class _Crew:
    """Threads that take chunks from one list."""

    def __init__(self, work: Work, todo: list[tuple[int, int]], count: int) -> None:
        self.work, self.todo = work, todo[::-1]
        self.errors: list[BaseException] = []
        self.inference = torch.is_inference_mode_enabled()  # of the caller; each thread has its own
        self.ready = threading.Barrier(count + 1)
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Returns when every thread runs operations alone."""
        try:
            for thread in self.threads:
                thread.start()
        except RuntimeError:  # no more threads: those that wait end
            self.ready.abort()
            raise
        self.ready.wait()

    def finish(self) -> None:
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # takes the number over, which the next operation would do
        try:
            self.ready.wait()
        except threading.BrokenBarrierError:
            return
        while not self.errors:
            try:
                chunk = self.todo.pop()  # atomic
            except IndexError:
                return
            try:
                with torch.inference_mode(self.inference):
                    self.work(*chunk)
            except BaseException as error:
                self.errors.append(error)
