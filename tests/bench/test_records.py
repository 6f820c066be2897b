"""A record survives its file, and knows what meets its goals."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import make_record
from tilewright.bench.command import note
from tilewright.bench.records import Record, load_record, newest_records


def test_a_saved_record_loads_as_it_was(record: Record, tmp_path: Path) -> None:
    path = record.save(tmp_path)
    assert path == tmp_path / "avx512-zen5" / "attention-2026-11-24.json"
    assert load_record(path) == record


def test_the_file_says_what_was_met(record: Record) -> None:
    data = json.loads(record.to_json())
    row = data["comparisons"][0]
    assert (row["ratio"], row["best_ratio"], row["met"]) == (2.0, 3.0, True)
    assert data["quantities"][0]["met"] is True
    assert make_record(ours=4.0).comparisons[0].met is False


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "attention-2026-01-01.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="attention-2026-01-01"):
        load_record(path)


def test_the_newest_record_of_each_class_counts(tmp_path: Path) -> None:
    old = replace(make_record(kind="avx2"), date="2026-10-30T00:00:00+00:00")
    new = make_record(kind="avx2", ours=1.0)
    for record in (new, old, make_record(), make_record("demo")):
        record.save(tmp_path)
    assert newest_records("attention", tmp_path) == [new, make_record()]
    assert newest_records("demo", tmp_path) == [make_record("demo")]
    assert newest_records("demo", tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("variables", "styled"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_progress_is_plain_where_no_colours_are_wanted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], styled: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", Terminal())
    note("attention 512")
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "attention 512" in shown and ("\x1b[" in shown) is styled
