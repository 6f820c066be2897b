"""Kills ``tilewright tune … --resume`` with SIGKILL at random moments: what of its trials is lost?

Every run goes on with the same database. A trial is lost if its process had begun and the database
knows nothing of it: at most the one under way may be. What was kept before must be there after.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tilewright.bench.machine import describe_machine, now
from tilewright.bench.records import Goal, Quantity, Record

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "attention.tw"
SIZES = ("B=1", "K=2", "G=1", "N=64", "M=64")
BUDGET = "120s"  # longer than any run lives
MOST_KEPT = 4  # trials that a run has kept when it is killed
LATEST = 1.5  # seconds after the last of them
AT_ONCE = 0.2  # share of runs that are killed while they start, within so many seconds
STARTING = 12.0
GRACE = 20.0  # seconds for the children of a killed process to go
# The command line, which writes down how many choices a job has that begins, and "kept".
_TUNE = """
import os, sys
from tilewright.cli import main
from tilewright.runtime.tuning.tuner import Tuner
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
submit, keep = Tuner._submit, Tuner._keep
def begun(self, task, choices, *more):
    os.write(log, b"%d\\n" % len(choices))
    return submit(self, task, choices, *more)
def kept(self, *arguments):
    trials = keep(self, *arguments)
    os.write(log, b"kept\\n")
    return trials
Tuner._submit, Tuner._keep = begun, kept
main()
"""


@dataclass(frozen=True)
class Kill:
    """One run. ``begun``: jobs whose processes had started; ``kept``: those that the database had;
    ``rows``: of the database afterwards; ``gone``: rows that it had before and has no more."""

    after: float  # seconds
    begun: int
    kept: int
    rows: int
    gone: int
    error: str  # of the database, '' for none
    outlived: int  # processes left after GRACE

    @property
    def lost(self) -> int:
        return self.begun - self.kept


def kill_one(
    database: Path, folder: Path, draw: random.Random, program: Path = EXAMPLE, *sizes: str
) -> Kill:
    """Starts the tuner, kills it at a random moment and looks at what is left."""
    before, _ = rows_of(database)
    log = folder / "log"
    log.unlink(missing_ok=True)
    start = time.monotonic()
    options = [word for size in sizes or SIZES for word in ("--size", size)]
    command = ["tune", str(program), *options, "--budget", BUDGET, "--database", str(database)]
    process = subprocess.Popen(
        [sys.executable, "-c", _TUNE, str(log), *command, "--resume"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    with ended(process):
        if draw.random() < AT_ONCE:
            time.sleep(draw.uniform(0, STARTING))
        else:
            trials = draw.randint(0, MOST_KEPT)
            while not (lines := _lines(log)) or lines.count("kept") < trials:
                if process.poll() is not None:
                    raise RuntimeError(f"the tuner has ended by itself ({process.returncode})")
                time.sleep(0.01)
            time.sleep(draw.uniform(0, LATEST))
        after = time.monotonic() - start
        os.kill(process.pid, signal.SIGKILL)
    outlived = _wait_for_end(process.pid)
    lines = _lines(log)
    found, error = rows_of(database)
    jobs = [int(line) for line in lines if line != "kept"]
    kept = _jobs_of(len(found.difference(before)), jobs)
    if kept is None or kept < lines.count("kept"):
        error = error or f"{len(found) - len(before)} new rows after {lines}"
    gone = len(before.difference(found))
    return Kill(round(after, 2), len(jobs), kept or 0, len(found), gone, error, outlived)


def _lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def _jobs_of(rows: int, jobs: list[int]) -> int | None:
    """How many of the jobs, which have so many choices each, make so many rows; None: that is no
    sum of whole jobs."""
    sums = [0, *accumulate(jobs)]
    return sums.index(rows) if rows in sums else None


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leaves no process behind, whatever happens."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rows_of(database: Path) -> tuple[set[str], str]:
    """The ids of all trials, and what is wrong with the database ('' for nothing)."""
    if not database.exists():
        return set(), ""
    try:
        with closing(sqlite3.connect(database, timeout=60)) as file:
            (state,) = file.execute("PRAGMA integrity_check").fetchone()
            found = file.execute("SELECT id FROM trials").fetchall()
    except sqlite3.OperationalError as error:
        return set(), "" if "no such table" in str(error) else str(error)
    except sqlite3.DatabaseError as error:
        return set(), str(error)
    return {row[0] for row in found}, "" if state == "ok" else str(state)


def _wait_for_end(session: int) -> int:
    """How many processes of a killed session are left after GRACE seconds."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        if not living(session):
            return 0
        time.sleep(0.05)
    return len(living(session))


def living(session: int) -> list[int]:
    """Processes of a session, by Linux' /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                found.append(int(folder.name))
    return found


def main(
    times: Annotated[int, typer.Option(min=1, help="Kills.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    save: Annotated[bool, typer.Option(help="Write the record to bench/results.")] = True,
) -> None:
    """Kill a tuner again and again and count what is lost."""
    draw, kills = random.Random(seed), []
    with TemporaryDirectory() as folder:
        database = Path(folder) / "tuning.sqlite3"
        for number in range(times):
            kills.append(kill_one(database, Path(folder), draw))
            typer.echo(f"{number + 1:3} {kills[-1]}", err=True)
    record = record_of(kills, seed)
    for row in record.quantities:
        typer.echo(f"{row.name}: {row.value:g} {row.unit} ({'met' if row.met else 'MISSED'})")
    if save:
        typer.echo(f"written to {record.save()}")


def record_of(kills: list[Kill], seed: int) -> Record:
    """The record of all kills."""
    quantities = (
        Quantity("most trials lost by one kill", max(x.lost for x in kills), "trials", Goal(1)),
        Quantity("rows lost that were kept", sum(x.gone for x in kills), "rows", Goal(0)),
        Quantity("database errors", sum(bool(x.error) for x in kills), "errors", Goal(0)),
        Quantity("processes left behind", sum(x.outlived for x in kills), "processes", Goal(0)),
    )
    details = {"seed": seed, "kills": [asdict(x) for x in kills]}
    return Record("tuning-kills", now(), describe_machine(), (), quantities, details)


if __name__ == "__main__":
    typer.run(main)
