"""Records the calls of programs and kernels in this process; off unless asked for.

``now.recorder`` is all that a call looks at while nothing is recorded. ``TILEWRIGHT_TRACE`` turns
it on for whole processes, which write into a folder (parts.py); ``recording()`` for a few calls.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tilewright.ir.bind import bind_sizes
from tilewright.ir.core import Graph
from tilewright.ir.errors import TilewrightError
from tilewright.ir.printer import print_graph, print_module
from tilewright.runtime.graph_text import table_dtypes
from tilewright.runtime.kernel import TORCH_DTYPES
from tilewright.runtime.settings import settings
from tilewright.runtime.threads import num_threads
from tilewright.runtime.tracing.kernels import TracedInput, TracedKernel
from tilewright.runtime.tracing.parts import MOST_ROWS, Part

if TYPE_CHECKING:
    from tilewright.runtime.family import KernelFamily
    from tilewright.runtime.program import Program

Tensors = tuple[torch.Tensor, ...]
Call = Callable[..., Tensors]


class TraceWarning(UserWarning):
    """The trace of this process cannot be written, or has no room for more."""


class Counter(Protocol):
    """Where calls are counted."""

    def row(self, kernel: TracedKernel) -> int:
        """The number of a new row."""

    def count(self, row: int, seconds: float) -> None:
        """One more call of a row."""


class InMemory:
    """Rows of this process alone."""

    def __init__(self) -> None:
        self.rows: list[TracedKernel] = []

    def row(self, kernel: TracedKernel) -> int:
        """The number of a new row."""
        self.rows.append(kernel)
        return len(self.rows) - 1

    def count(self, row: int, seconds: float) -> None:
        """One more call of a row."""
        facts = self.rows[row].__dict__
        first = facts["first_seconds"] if facts["count"] else seconds
        new = {"count": facts["count"] + 1, "seconds": facts["seconds"] + seconds}
        self.rows[row] = TracedKernel(**{**facts, **new, "first_seconds": first})


class Recorder:
    """Times calls and counts them by what was called and with which dtypes, shapes and strides.

    Of calls inside calls each kind is counted for itself: programs, kernels, tile kernels; a
    program that another one calls is a part of it. Safe in threads and signal handlers.
    """

    def __init__(self, counter: Counter | None = None) -> None:
        self.counter = counter
        self.rows: dict[object, int] = {}
        self.full = False
        self.lock = threading.RLock()  # a signal's handler may call a kernel, too
        self.here = threading.local()

    def program(self, program: Program, tensors: Tensors) -> Tensors:
        """Calls a program and counts it."""
        self.here.program = program
        try:
            start = time.perf_counter()
            results = program(*tensors)
            seconds = time.perf_counter() - start
        finally:
            self.here.program = None
        self._count(program, tensors, seconds, lambda: _of_program(program, tensors))
        return results

    def kernel(self, family: KernelFamily, tensors: Tensors) -> Tensors:
        """Calls a kernel of a program and counts it."""
        before = getattr(self.here, "kernel", None)
        self.here.kernel = family
        try:
            start = time.perf_counter()
            results = family(*tensors)
            seconds = time.perf_counter() - start
        finally:
            self.here.kernel = before
        self._count(family, tensors, seconds, lambda: _of_family(family, tensors))
        return results

    def wants_program(self) -> bool:
        """Whether a program's call is the outermost one of this thread."""
        return getattr(self.here, "program", None) is None

    def wants_kernel(self, family: object) -> bool:
        """Whether a kernel's call is not yet being counted."""
        return getattr(self.here, "kernel", None) is not family

    def tile(self, call: Call, program: Graph, facts: tuple[str, str], tensors: Tensors) -> Tensors:
        """Calls a kernel written as a tile program and counts it; ``facts``: target, back end."""
        start = time.perf_counter()
        results = call(*tensors)
        seconds = time.perf_counter() - start
        count = int(program.attrs["outputs"])
        given = program.params[: len(program.params) - count]
        names = [p.hint for p in given]
        self._count(
            call,
            tensors,
            seconds,
            lambda: _row(program, print_graph(program), names, facts, tensors),
        )
        return results

    def _count(
        self, what: object, tensors: Tensors, seconds: float, row: Callable[[], TracedKernel]
    ) -> None:
        key = what, num_threads(), tuple([(x.dtype, x.shape, x.stride()) for x in tensors])
        with self.lock:
            number = self.rows.get(key)
            if number is None:
                number = self._new(key, row)
            if number >= 0 and self.counter is not None:
                self.counter.count(number, seconds)

    def _new(self, key: object, row: Callable[[], TracedKernel]) -> int:
        """A new row's number, -1 if there is no room for it."""
        if self.full:
            return -1
        try:
            if self.counter is None:
                folder = settings().trace
                assert folder is not None, "a recorder without a counter writes into the folder"
                self.counter = Part(folder, machine())
            if len(self.rows) >= MOST_ROWS:
                raise OSError(f"more than {MOST_ROWS} kernels and sizes")
            self.rows[key] = number = self.counter.row(row())
        except Exception as error:  # whatever it is, the program goes on
            self.full = True
            reason = getattr(error, "strerror", None) or error
            text = f"the trace of process {os.getpid()} ends here: {reason}"
            with suppress(TraceWarning):  # which filters may have made an exception
                warnings.warn(text, TraceWarning, stacklevel=6)
            return -1
        return number


def machine() -> dict[str, str]:
    """Where a trace was made."""
    found = {"system": platform.system(), "machine": platform.machine(), "cpu": "", "features": ""}
    try:
        from tilewright.runtime.targets import host_target

        target = host_target()
        found |= {"cpu": target.cpu, "features": target.features}
    except TilewrightError:
        pass  # no LLVM here: the rows have their targets' names
    return found


def _of_program(program: Program, tensors: Tensors) -> TracedKernel:
    facts = program.target.name, program.backend
    text = print_module(program.module)
    return _row(program.module.main, text, list(program.inputs), facts, tensors)


def _of_family(family: KernelFamily, tensors: Tensors) -> TracedKernel:
    graph = family.source
    backend = family.reports[-1].backend if family.reports else "interpreter"
    names = [p.hint for p in graph.params]
    return _row(graph, print_graph(graph), names, (family.target.name, backend), tensors)


def _row(
    graph: Graph, text: str, names: Sequence[str], facts: tuple[str, str], tensors: Tensors
) -> TracedKernel:
    inputs = tuple(
        TracedInput(name, _DTYPES[x.dtype], tuple(x.shape), tuple(x.stride()))
        for name, x in zip(names, tensors, strict=True)
    )
    options: dict[str, int | str] = {"threads": num_threads(), "device": _device(tensors)}
    tables = {d.name: d.table for d in table_dtypes(graph)}
    return TracedKernel(
        text,
        graph.level,
        graph.name,
        *facts,
        inputs,
        _sizes(graph, tensors),
        options,
        tables,
    )


_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def _device(tensors: Tensors) -> str:
    return tensors[0].device.type if tensors else "cpu"


def _sizes(graph: Graph, tensors: Tensors) -> dict[str, int]:
    """Values of the size names, as far as the inputs say."""
    given = graph.params[: len(tensors)]
    names = {n for p in given for s in getattr(p.type, "shape", ()) for n in s.names}
    alone = Graph(
        graph.level,
        graph.name,
        tuple(n for n in graph.sizes if n in names),
        type(graph.body)(given, ()),
    )
    return bind_sizes(alone, [tuple(x.shape) for x in tensors])


class _Now:
    """What records at present: None costs a call one look."""

    recorder: Recorder | None = None


now = _Now()


def traced_tile(call: Call, program: Graph, target: str, backend: str) -> Call:
    """A tile kernel's call, counted while something records."""

    def counted(*tensors: Any) -> Tensors:
        if now.recorder is None:
            return call(*tensors)
        return now.recorder.tile(call, program, (target, backend), tensors)

    return counted


@contextmanager
def recording() -> Iterator[list[TracedKernel]]:
    """Records the calls inside, of all threads, instead of what is recorded otherwise. The list has
    a row for each kind of call and grows until the end."""
    counter = InMemory()
    process = os.getpid()
    before, now.recorder = now.recorder, Recorder(counter)
    try:
        yield counter.rows
    finally:
        if os.getpid() == process:
            now.recorder = before
        else:  # a forked child leaves: what the parent records is not its own
            begin()


def begin() -> None:
    """Begins as the environment says, in a forked child with files of its own."""
    now.recorder = Recorder() if settings().trace is not None else None


def _after_fork() -> None:
    if now.recorder is not None:
        begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
begin()
