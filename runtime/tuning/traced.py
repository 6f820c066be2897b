"""From recorded calls to the kernels to tune, each with its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tilewright.ir.errors import TilewrightError
from tilewright.runtime.tracing.kernels import Trace, TracedKernel
from tilewright.runtime.tracing.recorder import recording
from tilewright.runtime.tuning.task import KernelTask, SizeClass, task_of

Weighted = list[tuple[KernelTask, float]]
Skipped = dict[str, str]


def tasks_of_call(call: Callable[[], object]) -> tuple[Weighted, Skipped]:
    """The kernels that a call runs, by how often, and why others are not tuned, by name."""
    with recording() as rows:
        call()
    return _tasks(rows, lambda row: float(row.count))


def tasks_of_trace(trace: Trace) -> tuple[Weighted, Skipped]:
    """The kernels of a traced run by the seconds that it spent in them, those that took longest
    first, and why others are not tuned, by name."""
    return _tasks(trace.kernels, lambda row: max(row.seconds - row.first_seconds, 1e-9))


def _tasks(
    rows: Iterable[TracedKernel], weight: Callable[[TracedKernel], float]
) -> tuple[Weighted, Skipped]:
    found: dict[tuple[str, SizeClass], tuple[KernelTask, float]] = {}
    skipped: Skipped = {}
    for row in rows:
        if row.level == "tile":
            skipped[row.name] = "the runtime wrote it itself; it has one schedule"
        if row.level != "stream":
            continue
        try:
            task = task_of(row)
        except TilewrightError as error:
            skipped[row.name] = error.message
            continue
        place = task.kernel, task.size_class
        first, before = found.get(place, (task, 0.0))
        found[place] = first, before + weight(row)
    return sorted(found.values(), key=lambda x: -x[1]), skipped
