"""``tilewright tune``: better schedules within a budget, and what was found until now."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tilewright.cli.long_runs import INTERRUPTED, duration
from tilewright.cli.output import note, plural, say, table
from tilewright.cli.sizes import SizeOption
from tilewright.ir.errors import TuningError

if TYPE_CHECKING:
    from tilewright.runtime.tuning.tuner import Tuner


class _Commands(TyperGroup):
    """``tune WHAT`` where the first word is none of the commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    help="Find better schedules for kernels: tune WORKLOAD|FILE|TRACE, or look at what was found.",
)
DatabaseOption = Annotated[
    Path | None,
    typer.Option(
        "--database", metavar="PATH", help="Where results are kept (default: in the cache folder)."
    ),
]


@app.command("run")
def run(  # noqa: PLR0913, PLR0917 (Typer wants each option as a parameter)
    what: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD|FILE|TRACE",
            help="A suite of tilewright bench or one of its problems (attention, "
            "lowbit/…), a .tw file, or a trace.",
        ),
    ],
    budget: Annotated[str, typer.Option(help="Time for all kernels: 60s, 10m, 1h.")] = "60s",
    size: SizeOption = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor to compile for (default: host).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="mlir, numba, triton, cuda.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trials at once. More than one disturb each other's times.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option(help="Take earlier trials of this device as measured.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="What one trial may take.")] = "30s",
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run trials on a Ray cluster.")
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """Tune the kernels of a workload, a program or a trace."""
    from tilewright.cli.tune_output import Live
    from tilewright.cli.tune_what import kernels_to_tune
    from tilewright.runtime.tuning.database import Database
    from tilewright.runtime.tuning.tuner import Tuner

    seconds = duration("--budget", budget)
    tasks = kernels_to_tune(what, size or (), target, backend)
    gpu = any(task.target.startswith(("cuda", "hip")) for task, _ in tasks)
    workers = _workers(ray, jobs, duration("--timeout", timeout), gpu)
    store = Database(database)
    live = Live(len(tasks), seconds)
    tuner = Tuner(workers, store, live.watch, resume=resume)
    interrupted = False
    with workers, _interrupts(tuner):
        note(f"{plural(len(tasks), 'kernel')}, {budget}, on {workers.device}")
        try:
            with live:
                tuner.run(tasks, seconds)
        except KeyboardInterrupt:
            interrupted = True
    live.summary()
    if interrupted:
        note(f"stopped; what was measured is kept in {store.path} (go on with --resume)")
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _interrupts(tuner: Tuner) -> Iterator[None]:
    """The first Ctrl-C ends the search where it can be ended, a second one at once."""

    def came(number: int, frame: FrameType | None) -> None:
        if tuner.interrupted:
            signal.default_int_handler(number, frame)
        tuner.interrupted = True

    before = signal.signal(signal.SIGINT, came)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _workers(ray: str | None, jobs: int, timeout: float, gpu: bool) -> Any:
    if ray is not None:
        from tilewright.runtime.tuning.ray_workers import RayWorkers

        return RayWorkers(ray, timeout, gpu)
    from tilewright.runtime.tuning.local import LocalWorkers

    return LocalWorkers(jobs, timeout, gpu)


@app.command("show")
def show(database: DatabaseOption = None) -> None:
    """List the schedules that programs use, and the trials behind them."""
    from tilewright.runtime.tuning.database import Database

    store = Database(database)
    if database is not None and not database.exists():
        raise TuningError(f"there is no database {database}")
    tasks = {(x.kernel, x.size_class): x for x in store.tasks()}
    counts: dict[tuple[object, ...], int] = {}
    for trial in store.trials():
        place = trial.kernel, trial.size_class, trial.device
        counts[place] = counts.get(place, 0) + 1
    rows = []
    for x in store.winners():
        task = tasks.get((x.kernel, x.size_class))
        schedule = " ".join(f"{k}={v}" for k, v in x.choice.items()) or "the default"
        trials = counts.get((x.kernel, x.size_class, x.device), 0)
        name, shapes = (task.name, task.shapes) if task else (x.kernel[:12], "?")
        gain = f"{1 / x.ratio:.2f}x"
        rows.append((name, shapes, schedule, f"{x.milliseconds:.4g}", gain, trials, x.device))
    columns = ("kernel", "inputs", "schedule", "ms", "gain", "trials", "device")
    table(columns, rows, right=("ms", "gain", "trials"))
    say(f"{plural(len(rows), 'schedule')}, {plural(sum(counts.values()), 'trial')} in {store.path}")


@app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    database: DatabaseOption = None,
) -> None:
    """Write all results to one file."""
    from tilewright.runtime.tuning.database import Database
    from tilewright.runtime.tuning.exchange import export

    trials, winners = export(Database(database), file, force)
    say(f"{plural(trials, 'trial')} and {plural(winners, 'schedule')} written to {file}")


def _take(file: Path, database: Path | None) -> None:
    from tilewright.runtime.tuning.database import Database
    from tilewright.runtime.tuning.exchange import take_file

    store = Database(database)
    trials, winners = take_file(store, file)
    say(f"{plural(trials, 'new trial')} and {plural(winners, 'new schedule')} in {store.path}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file written by tune export.")],
    database: DatabaseOption = None,
) -> None:
    """Take over the results of an exported file. Of two schedules the later one stays."""
    _take(file, database)


@app.command("merge")
def merge(
    other: Annotated[Path, typer.Argument(help="Another database, or an exported file.")],
    database: DatabaseOption = None,
) -> None:
    """Take over the results of another database."""
    _take(other, database)
