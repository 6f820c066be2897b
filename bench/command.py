"""The options that the benchmarks' commands share, and what they do with a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from tilewright.bench.records import Record
from tilewright.bench.tables import show_record

AsJson = Annotated[bool, typer.Option("--json", help="Write the record to stdout.")]
Save = Annotated[bool, typer.Option("--save", help="Write it into bench/results/, too.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes, to see that it works.")]
Seconds = Annotated[float, typer.Option(help="How long to measure each comparison.")]


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
