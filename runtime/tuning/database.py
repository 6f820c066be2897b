"""What tuning has measured: an SQLite database that any number of processes read and write.

In WAL mode readers never wait, and what is committed survives any process. Every trial is committed
by itself. A file that is damaged, or of a newer version, is reported and left as it is.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tilewright.ir.errors import TuningError
from tilewright.runtime.own_files import NEW, UnsafeError, require_own
from tilewright.runtime.settings import TUNING, settings
from tilewright.runtime.tuning.task import KernelTask, SizeClass

VERSION = 1
WAIT_SECONDS = 60.0  # for another process's transaction
_SCHEMA = """
CREATE TABLE tasks (
  kernel TEXT NOT NULL, size_class TEXT NOT NULL, task TEXT NOT NULL,
  PRIMARY KEY (kernel, size_class)
);
CREATE TABLE trials (
  id TEXT PRIMARY KEY,
  kernel TEXT NOT NULL, size_class TEXT NOT NULL, device TEXT NOT NULL, choice TEXT NOT NULL,
  state TEXT NOT NULL, milliseconds REAL, ratio REAL, reason TEXT NOT NULL,
  compiler TEXT NOT NULL, measured_at TEXT NOT NULL
);
CREATE INDEX trials_of_kernel ON trials (kernel, size_class, device);
CREATE TABLE winners (
  kernel TEXT NOT NULL, size_class TEXT NOT NULL, device TEXT NOT NULL, choice TEXT NOT NULL,
  milliseconds REAL NOT NULL, ratio REAL NOT NULL, measured_at TEXT NOT NULL,
  PRIMARY KEY (kernel, size_class, device)
);
"""
_STATEMENTS = tuple(text.strip() for text in _SCHEMA.split(";") if text.strip())
_MOST_BYTES = 1 << 32  # of a file
_MOST_VALUE = 64 << 20  # bytes of a value or row
_MOST_TEXT = 1 << 20  # characters of a column


def _now() -> str:
    """Date and time, UTC, in an order that text has, too."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Trial:
    """One measured choice. ``state``: ok, or why there is no time: invalid, wrong, crash, timeout,
    memory, error, lost (with a remote worker). ``ratio``: its time over that of the default
    schedule in the same run."""

    kernel: str
    size_class: SizeClass
    device: str
    choice: Mapping[str, int]
    state: str
    milliseconds: float | None = None
    ratio: float | None = None
    reason: str = ""
    compiler: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    measured_at: str = field(default_factory=_now)


@dataclass(frozen=True)
class Winner:
    """The schedule that programs use for a size class of a kernel on a device; ``ratio`` as in
    Trial, at most 1: with 1 the default itself has won."""

    kernel: str
    size_class: SizeClass
    device: str
    choice: Mapping[str, int]
    milliseconds: float
    ratio: float
    measured_at: str = field(default_factory=_now)


def default_path() -> Path:
    """Where the database of this user lies. Raises TuningError if it is switched off."""
    path = settings().tuning
    if path is None:
        raise TuningError(f"{TUNING.name}=off: name a database (--database), or unset it")
    return path


class Database:
    """The results under one path (None: this user's), which is made when first written to.

    Raises TuningError for a file that is no database of ours or of a newer version, and where the
    disk is full; what was there stays as it is.
    """

    def __init__(
        self, path: Path | None = None, wait: float = WAIT_SECONDS, foreign: bool = False
    ) -> None:
        """``wait``: seconds for another process's transaction. ``foreign``: somebody else's, which
        is imported from; others must be writable by this user only."""
        self.path, self.wait, self.foreign = path or default_path(), wait, foreign

    def add(self, trial: Trial) -> None:
        """Keeps a trial."""
        self.add_all(trials=[trial])

    def add_all(
        self,
        trials: Iterable[Trial] = (),
        winners: Iterable[Winner] = (),
        tasks: Iterable[KernelTask] = (),
    ) -> None:
        """Keeps all or nothing. Trials and tasks that are known stay as they are; of two winners
        the later one stays."""
        with self._open(write=True) as file:
            file.executemany(
                "INSERT OR IGNORE INTO tasks VALUES (?, ?, ?)",
                [(x.kernel, _text(x.size_class), x.to_json()) for x in tasks],
            )
            file.executemany(
                "INSERT OR IGNORE INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_trial_row(x) for x in trials],
            )
            file.executemany(
                "INSERT INTO winners VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " choice = excluded.choice, milliseconds = excluded.milliseconds,"
                " ratio = excluded.ratio, measured_at = excluded.measured_at"
                " WHERE excluded.measured_at > winners.measured_at",
                [_winner_row(x) for x in winners],
            )

    def trials(self, kernel: str = "", size_class: SizeClass = (), device: str = "") -> list[Trial]:
        """The trials of a kernel, size class and device ('' or (): of any), in the order in which
        they were measured."""
        where, values = _where(kernel, size_class, device)
        rows = self._read(f"SELECT * FROM trials{where} ORDER BY measured_at, id", values)
        return [_trial(row) for row in rows]

    def winners(
        self, kernel: str = "", size_class: SizeClass = (), device: str = ""
    ) -> list[Winner]:
        """The schedules in use."""
        where, values = _where(kernel, size_class, device)
        rows = self._read(f"SELECT * FROM winners{where} ORDER BY kernel, size_class", values)
        return [_winner(row) for row in rows]

    def tasks(self) -> list[KernelTask]:
        """Every kernel and size that was ever tuned."""
        rows = self._read("SELECT task FROM tasks ORDER BY kernel, size_class", ())
        return [KernelTask.from_json(row["task"]) for row in rows]

    def merge(self, other: Database) -> tuple[int, int]:
        """Takes over what another database has; says how many trials and winners are new here."""
        if not other.path.exists():
            raise TuningError(f"{other.path} does not exist; name a database or an export")
        return self.take(other.trials(), other.winners(), other.tasks())

    def take(
        self, trials: list[Trial], winners: list[Winner], tasks: list[KernelTask]
    ) -> tuple[int, int]:
        """``add_all`` that counts what is new. Clocks of other machines may run ahead: nothing is
        later than now."""
        now = _now()
        winners = [replace(x, measured_at=min(x.measured_at, now)) for x in winners]
        known = {x.id for x in self.trials()}
        had = {(x.kernel, x.size_class, x.device): x.measured_at for x in self.winners()}
        self.add_all(trials, winners, tasks)
        fresh = sum(x.id not in known for x in trials)
        newer = sum(
            x.measured_at > had.get((x.kernel, x.size_class, x.device), "") for x in winners
        )
        return fresh, newer

    def _read(self, query: str, values: tuple[str, ...]) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        with self._open() as file:
            return file.execute(query, values).fetchall()

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, committed at the end."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_own()
            with closing(sqlite3.connect(self.path, timeout=self.wait)) as file:
                file.row_factory = sqlite3.Row
                file.execute("PRAGMA trusted_schema = OFF")
                file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE)
                file.isolation_level = None  # transactions are begun here, and nowhere else
                self._refuse(file)  # before anything is written, even the file's header
                _into_wal(file, self.wait)
                file.execute("BEGIN IMMEDIATE" if write or not _version(file) else "BEGIN")
                try:
                    self._check(file)
                    yield file
                except BaseException:
                    if file.in_transaction:
                        file.execute("ROLLBACK")
                    raise
                file.execute("COMMIT")
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise self._explained(error) from error

    def _require_own(self) -> None:
        """Makes a new file that only this user may read; TuningError for one that others may write,
        for a link, and for one that is too long."""
        with suppress(FileExistsError):
            os.close(os.open(self.path, NEW, 0o600))
        found = os.lstat(self.path)
        if not stat.S_ISREG(found.st_mode):
            raise TuningError(f"{self.path} is no plain file; name the database itself")
        if found.st_size > _MOST_BYTES:
            raise TuningError(f"{self.path} has {found.st_size} bytes: no database of ours does")
        try:
            if not self.foreign:
                require_own(found, self.path)
        except UnsafeError as error:
            raise TuningError(
                f"{error}. {error.way}, or take over what it holds: tilewright tune import"
            ) from None

    def _check(self, file: sqlite3.Connection) -> None:
        """Makes the tables of a new file."""
        self._refuse(file)
        if _version(file) == 0:
            for statement in _STATEMENTS:
                file.execute(statement)
            file.execute(f"PRAGMA user_version = {VERSION}")

    def _refuse(self, file: sqlite3.Connection) -> None:
        """TuningError for a file from the future, or of something else."""
        version = _version(file)
        if version > VERSION:
            raise TuningError(
                f"{self.path} was written by a newer Tilewright (format {version}, this one reads "
                f"{VERSION}): update Tilewright, or name another file (TILEWRIGHT_CACHE_DIR)"
            )
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not version and tables and not _version(file):  # not made by another process just now
            raise TuningError(f"{self.path} is a database of something else; name another file")
        if version and _statements(file) != set(_STATEMENTS):  # a view could run for ever
            raise TuningError(
                f"{self.path} has other tables than a database of tuning results: it is damaged, "
                "or made by something else; it was left as it is"
            )

    def _explained(self, error: Exception) -> TuningError:
        text = str(error)
        if "full" in text:
            way = "make room on the disk; results until now are kept"
        elif "malformed" in text or "not a database" in text or "decode" in text:
            way = "it was left as it is: move it away, or restore it from an export"
        elif "locked" in text:
            way = f"another process has held it for {self.wait:g} s: is one hanging?"
        else:
            way = "see that its folder can be written to, or set TILEWRIGHT_CACHE_DIR"
        return TuningError(f"tuning results in {self.path}: {text}; {way}")


def _into_wal(file: sqlite3.Connection, wait: float) -> None:
    """Write-ahead logging, which is a property of the file; the switch itself does not wait for
    others as transactions do."""
    end = time.monotonic() + wait
    while True:
        try:
            if file.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _statements(file: sqlite3.Connection) -> set[str]:
    """What made all that a database has; what SQLite adds by itself has no text."""
    rows = file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100")
    return {str(row[0]) for row in rows}


def _version(file: sqlite3.Connection) -> int:
    return int(file.execute("PRAGMA user_version").fetchone()[0])


def _where(kernel: str, size_class: SizeClass, device: str) -> tuple[str, tuple[str, ...]]:
    given = {"kernel": kernel, "size_class": _text(size_class), "device": device}
    given = {name: value for name, value in given.items() if value not in ("", "[]")}
    text = " AND ".join(f"{name} = ?" for name in given)
    return (f" WHERE {text}" if text else ""), tuple(given.values())


def _text(size_class: SizeClass) -> str:
    return json.dumps(list(size_class))


def choice_text(choice: Mapping[str, int]) -> str:
    """A choice as it is kept: equal choices have equal text."""
    return json.dumps(dict(sorted(choice.items())))


def _trial_row(x: Trial) -> tuple[object, ...]:
    place = x.id, x.kernel, _text(x.size_class), x.device, choice_text(x.choice)
    return (*place, x.state, x.milliseconds, x.ratio, x.reason, x.compiler, x.measured_at)


def _winner_row(x: Winner) -> tuple[object, ...]:
    place = x.kernel, _text(x.size_class), x.device, choice_text(x.choice)
    return (*place, x.milliseconds, x.ratio, x.measured_at)


def _trial(row: sqlite3.Row) -> Trial:
    facts = dict(row)
    return Trial(**{**facts, **_decoded(facts)})


def _winner(row: sqlite3.Row) -> Winner:
    facts = dict(row)
    return Winner(**{**facts, **_decoded(facts)})


def _fits(name: str, value: object) -> bool:
    """Whether a column may hold a value: SQLite keeps anything anywhere."""
    if name in ("milliseconds", "ratio"):
        return value is None or (isinstance(value, float) and 0 <= value < math.inf)
    return isinstance(value, str) and len(value) <= _MOST_TEXT


def _decoded(facts: Mapping[str, Any]) -> dict[str, object]:
    """The fields that are kept as text. Raises TuningError for what we did not write."""
    try:
        sizes, choice = json.loads(facts["size_class"]), json.loads(facts["choice"])
        good = isinstance(sizes, list) and isinstance(choice, dict)
        good = good and all(type(x) is int for x in (*sizes, *choice.values()))
        good = good and all(_fits(name, value) for name, value in facts.items())
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise TuningError(
            f"a damaged row of tuning results ({str(facts['choice'])[:60]!r}); the database was "
            "left as it is: move it away, or restore it from an export"
        )
    return {"size_class": tuple(sizes), "choice": choice}
