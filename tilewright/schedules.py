"""Schedules of a call's kernels: their spaces, the cost model's order, each of them compiled, and
what a search within a budget chooses."""

from __future__ import annotations

from pathlib import Path

from tilewright.passes.to_tile.choices import Choice
from tilewright.runtime.schedule_forms import KernelForm, kernel_forms

__all__ = ["Choice", "KernelForm", "kernel_forms", "tuned"]


def tuned(form: KernelForm, seconds: float, database: Path) -> tuple[Choice, int]:
    """What ``tilewright tune`` chooses for a kernel within so many seconds, alone on this machine,
    and the number of its trials. The default schedule if nothing is faster.

    ``database``: where the trials are kept; those that are there count only for the last
    comparison. Raises BackendMissingError without Optuna.
    """
    from tilewright.runtime.tuning.database import Database
    from tilewright.runtime.tuning.local import LocalWorkers
    from tilewright.runtime.tuning.tuner import Tuner

    with LocalWorkers() as workers:
        (state,) = Tuner(workers, Database(database)).run([(form.task, 1.0)], seconds)
    chosen = state.winner.choice if state.winner else {}
    return chosen or dict(form.space.default), state.trials
