"""How the command line writes: results to stdout, everything about them to stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright.ir.errors import TilewrightError

_WIDE = 200  # columns where no terminal says how many there are


def say(text: str) -> None:
    """A line or a whole text on stdout, as it is: it may be IR, where nothing may be wrapped."""
    typer.echo(text, color=_styles())


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    typer.secho(text, err=True, color=_styles(err=True), dim=True)


def complain(error: TilewrightError) -> None:
    """A user's mistake: kind, place, message, and the source line with a caret."""
    label = typer.style(f"error[{error.code}]", fg="red", bold=True)
    typer.echo(f"{label}: {error}", err=True, color=_styles(err=True))


def heading(text: str) -> None:
    """A line above what belongs together."""
    typer.secho(text, color=_styles(), bold=True)


def _styles(err: bool = False) -> bool | None:
    """False under NO_COLOR and TERM=dumb, which Typer does not look at and Rich does; otherwise
    None: Typer strips them where there is no terminal. ``err``: of stderr."""
    console = Console(stderr=err)
    return False if console.no_color or console.is_dumb_terminal else None


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[str] = (),
    indent: int = 0,
) -> None:
    """A table without lines; the columns named in ``right`` hold numbers. Nothing for no rows."""
    if not rows:
        return
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    console.width = console.width - indent if console.is_terminal else _WIDE
    with console.capture() as captured:
        console.print(made)
    lines = captured.get().splitlines()
    say("\n".join((" " * indent + line).rstrip() for line in lines))


def seconds(duration: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if duration * factor >= 1 or unit == "µs":
            return f"{duration * factor:.3g} {unit}"
    raise AssertionError("every duration has a unit")


def amount(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {' KMGT'[power]}iB"


def plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}" + ("" if count == 1 else ending)


def forget_unwritten() -> None:
    """Drops what stdout and stderr still hold and cannot write: Python would try again when it
    ends, and end with a message and an exit code of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one that was closed is None
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def friendly_warnings() -> Iterator[None]:
    """Our own warnings as one line each; those of others as Python shows them."""
    with warnings.catch_warnings():
        others: Callable[..., None] = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if category.__module__.startswith("tilewright"):
                label = typer.style("warning", fg="yellow", bold=True)
                typer.echo(f"{label}: {message}", err=True, color=_styles(err=True))
            else:
                others(message, category, *rest, **more)

        warnings.showwarning = show
        yield
