"""Tuning results as one JSON file, to be carried to other machines and merged there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tilewright.ir.errors import TuningError
from tilewright.runtime.json_fields import Fields, check_version, parse_object
from tilewright.runtime.tuning.database import Database, Trial, Winner
from tilewright.runtime.tuning.task import KernelTask
from tilewright.runtime.whole_file import write_whole

SCHEMA, VERSION = "tilewright-tuning", 1
_SQLITE = b"SQLite format 3\0"
_MOST_BYTES = 1 << 30
_FIELDS = 64  # of a schedule


def export(database: Database, path: Path, force: bool = False) -> tuple[int, int]:
    """Writes everything to a file, as a whole or not at all; says how many trials and winners.
    Raises TuningError if it exists (``force`` replaces it) or cannot be written."""
    trials, winners = database.trials(), database.winners()
    value = {
        "schema": SCHEMA,
        "version": VERSION,
        "tasks": [json.loads(x.to_json()) for x in database.tasks()],
        "trials": [asdict(x) for x in trials],
        "winners": [asdict(x) for x in winners],
    }
    data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    write_whole(path, data, TuningError, force)
    return len(trials), len(winners)


def take_file(database: Database, path: Path) -> tuple[int, int]:
    """Merges an exported file, or another database, into this one; says how many trials and winners
    are new. Raises TuningError for anything else; nothing is taken then."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_SQLITE))
            if head == _SQLITE:
                return database.merge(Database(path, foreign=True))
            data = head + file.read(_MOST_BYTES)
    except OSError as error:
        raise TuningError(f"cannot read {path}: {error.strerror or error}") from None
    top = parse_object(data, str(path), TuningError)
    check_version(top, SCHEMA, VERSION, "an export of tuning results")
    tasks = [KernelTask.from_json(json.dumps(x.value)) for x in top.objects("tasks")]
    trials = [_trial(x) for x in top.objects("trials")]
    return database.take(trials, [_winner(x) for x in top.objects("winners")], tasks)


def _trial(x: Fields) -> Trial:
    timed = x.value.get("ratio") is not None
    return Trial(
        x.text("kernel", most=64),
        x.numbers("size_class", most=64),
        x.text("device", most=1000),
        _choice(x),
        x.text("state", most=16),
        x.decimal("milliseconds") if timed else None,
        _ratio(x) if timed else None,
        x.text("reason", most=10_000),
        x.text("compiler", most=64),
        x.text("id", most=64),
        x.text("measured_at", most=40),
    )


def _winner(x: Fields) -> Winner:
    return Winner(
        x.text("kernel", most=64),
        x.numbers("size_class", most=64),
        x.text("device", most=1000),
        _choice(x),
        x.decimal("milliseconds"),
        _ratio(x),
        x.text("measured_at", most=40),
    )


def _ratio(x: Fields) -> float:
    found = x.decimal("ratio")
    if not found:
        raise x.refuse("ratio", "must be above 0")
    return found


def _choice(x: Fields) -> dict[str, int]:
    found = x.counts("choice")
    if len(found) > _FIELDS:
        raise x.refuse("choice", f"has {len(found)} fields")
    return found
