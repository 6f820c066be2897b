"""Sixty-four threads at work for minutes: is anything wrong, lost or left over? A command:
``tilewright bench figures soak --minutes 10 --save``.

One process computes every case alone. Another, with an empty kernel cache that is too small for
all, calls them from many threads (``soak_load``), while a third tunes one of the kernels into the
database that the second looks at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tilewright.bench.command import AsJson, Quick, Save
from tilewright.bench.machine import describe_machine, now
from tilewright.bench.records import Goal, Quantity, Record
from tilewright.bench.soak_cases import TUNED, TUNED_SIZES
from tilewright.bench.soak_load import LATE_UNTIL
from tilewright.bench.tables import show_record

CACHE = "256K"  # of kernels: fewer than there are
GROWTH = Goal(must=64, aim=16)  # MiB after the last new kernel
TUNING_SHARE = 0.5  # of the time
LATE, QUICK_LATE = 24, 4
LONGEST_START = 3600.0  # seconds for computing all cases alone, on a busy machine

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.01, help="How long threads are at work.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="How many at once.")] = 64,
    as_json: AsJson = False,
    save: Save = False,
    quick: Quick = False,
) -> None:
    """Calls the same and different kernels from many threads, and holds every result to one that
    was computed alone."""
    if save and quick:
        raise typer.BadParameter("only a whole run is saved: leave out --quick")
    record = run(0.1 if quick else minutes, threads, QUICK_LATE if quick else LATE)
    if as_json:
        typer.echo(record.to_json(), nl=False)
    else:
        show_record(record)
    if save:
        typer.echo(f"written to {record.save()}", err=True)


def run(minutes: float, threads: int, late: int) -> Record:
    """The record of one soak. Raises RuntimeError if a process of it ends otherwise than well."""
    date, here = now(), describe_machine()
    with TemporaryDirectory(prefix="tilewright-soak-") as name:
        folder = Path(name)
        options = ["--late", str(late)]
        _load(folder, "alone", [*options, "--alone"], LONGEST_START)
        seconds = minutes * 60
        with _tuner(folder, seconds * TUNING_SHARE) as trials:
            options += ["--seconds", str(seconds), "--threads", str(threads)]
            text = _load(folder, "load", options, seconds + LONGEST_START)
        found = json.loads(text)
        found["tuned_schedules"] = trials()
    found |= {"minutes": minutes, "threads": threads, "cache": CACHE}
    return Record("soak", date, here, (), quantities(found), found)


def quantities(found: dict[str, Any]) -> tuple[Quantity, ...]:
    """What is held to goals: nothing wrong, nothing lost, nothing left over."""
    late = [x for x in found["samples"] if x["share"] >= LATE_UNTIL] or found["samples"][-1:]
    last = late[-1]
    before, after = found["before"], found["after"]
    growth = {what: last[what] - late[0][what] for what in ("memory", "files", "threads")}
    return (
        Quantity("calls", found["calls"], "calls", Goal()),
        Quantity("wrong or failed calls and children", found["failures"], "calls", Goal(0)),
        Quantity("threads that hang", found["threads_hanging"], "threads", Goal(0)),
        Quantity("memory that grows when nothing is new", growth["memory"], "MiB", GROWTH),
        Quantity("open files more than before", after["files"] - before["files"], "files", Goal(0)),
        Quantity("threads at most", max(x["threads"] for x in found["samples"]), "threads", Goal()),
    )


def _environment(folder: Path, kind: str) -> dict[str, str]:
    """Caches of their own: small under load, whole when alone."""
    own = {
        "TILEWRIGHT_CACHE_DIR": str(folder / f"{kind}-kernels"),
        "TILEWRIGHT_CACHE_SIZE": CACHE if kind == "load" else "512M",
        "TILEWRIGHT_TUNING": "off" if kind == "alone" else str(folder / "tuning.sqlite3"),
    }
    return {"OMP_WAIT_POLICY": "passive", **os.environ, **own}


def _load(folder: Path, kind: str, options: list[str], seconds: float) -> str:
    command = [sys.executable, "-m", "tilewright.bench.soak_load", str(folder), *options]
    done = subprocess.run(
        command,
        env=_environment(folder, kind),
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the soak's process ({kind}) ended with {done.returncode}")
    return done.stdout


@contextmanager
def _tuner(folder: Path, seconds: float) -> Iterator[Any]:
    """Tunes a kernel beside; gives a function that says what was found."""
    sizes = ",".join(f"{name}={size}" for name, size in TUNED_SIZES.items())
    tilewright = [sys.executable, "-m", "tilewright"]
    env = _environment(folder, "tuner")
    command = [*tilewright, "tune", str(TUNED), "-s", sizes, "--budget", f"{max(4.0, seconds)}s"]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, env=env, stdout=nothing, stderr=nothing)

    def found() -> list[str]:
        show = [*tilewright, "tune", "show"]
        done = subprocess.run(show, env=env, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()[:20]

    try:
        yield found
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    app()
