"""The options that the benchmarks' commands share, and what they do with a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console

from tilewright.bench import machine
from tilewright.bench.machine import Machine
from tilewright.bench.records import Record
from tilewright.bench.tables import show_record
from tilewright.bench.timing import QUICK, Effort

AsJson = Annotated[bool, typer.Option("--json", help="Write the record to stdout.")]
Save = Annotated[bool, typer.Option("--save", help="Write it into bench/results/, too.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes, to see that it works.")]
Seconds = Annotated[float, typer.Option(help="How long to measure each comparison.")]
Only = Annotated[str, typer.Option(help="Only what has this in its name.")]


def require_whole(save: bool, quick: bool, only: str) -> None:
    """Refuses to save a part of a benchmark. Raises BadParameter."""
    if save and (quick or only):
        raise typer.BadParameter("only a whole run is saved: leave out --quick and --only")


def note(text: str) -> None:
    """A dim line on stderr between two measurements (a spinner would disturb them); plain under
    NO_COLOR and TERM=dumb, which Typer does not look at and Rich does."""
    console = Console(stderr=True)
    plain = console.no_color or console.is_dumb_terminal
    typer.secho(text, err=True, color=False if plain else None, dim=True)


def begin(effort: Effort, quick: bool) -> tuple[str, Machine, Effort]:
    """The date, the machine as it is now, and how long to measure: torch takes our threads."""
    torch.set_num_threads(machine.THREADS)
    date = machine.now()  # the load at the start is the start's
    here = machine.measure_machine(machine.describe_machine(), quick)
    return date, here, QUICK if quick else effort


def add_command(
    app: typer.Typer, run: Callable[..., Record], about: str, seconds: float = 4.0
) -> None:
    """Makes ``run(effort, quick=…, only=…)`` the command of a benchmark, ``seconds`` for each
    comparison if nothing else is asked for."""

    def command(
        as_json: AsJson = False,
        save: Save = False,
        quick: Quick = False,
        only: Only = "",
        seconds: Seconds = seconds,
    ) -> None:
        require_whole(save, quick, only)
        deliver(run(Effort(seconds=seconds), quick=quick, only=only), as_json, save)

    app.command(help=about)(command)


def deliver(
    record: Record, as_json: bool, save: bool, show: Callable[[Record], object] = show_record
) -> None:
    """Shows a record, or writes it as JSON; saves it if asked to."""
    if as_json:
        typer.echo(record.to_json(), nl=False)
    else:
        show(record)
    if save:
        typer.echo(f"saved as {record.save()}", err=True)
