"""The section of docs/results.md on checks of the whole: counts as the files have them, newest
first, and what misses its goal says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench.checks import HEAD, checks

LINES = {"ir": {"lines": 100, "run": 99}, "passes": {"lines": 300, "run": 261}}
DRAWN: dict[str, Any] = {
    "options": {"places": ["mlir:host", "numba:host"]},
    "cases": 3309,
    "calls": 6181,
    "seconds": 3602.0,
    "failures": [],
    "passed": True,
}


def campaign(target: str, inputs: int, findings: int = 0) -> dict[str, Any]:
    return {"target": target, "inputs": inputs, "outcomes": {"finding": findings, "read": 1}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    def write(name: str, data: Any) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))

    write("here/stranger-2026-01-02.json", {"seconds": 44.2, "must_seconds": 600.0})
    write("here/import-2026-01-02.json", {"median_wall_seconds": 0.0824, "must_seconds": 0.5})
    write("coverage-2026-01-02.json", {"lines": LINES, "must": 0.92})
    for name, killed in (("2026-01-01", 199), ("seed3-2026-01-03", 150), ("2026-01-02", 10)):
        counted = {"share killed": killed / 200, "killed": killed, "counted": 200}
        write(f"mutation-{name}.json", counted)
    write("here/verify-2026-01-02.json", DRAWN)
    agreed = {"share of medians in the other's interval": [0.95, 0.88], "share overlapping": 0.98}
    agreed |= {"suite": "attention", "counts": {"rows": 206}}
    write("here/bench-agreement-2026-01-02.json", agreed)
    fuzzed = [campaign("parser", 4_000_000, 2), campaign("parser", 7_000_000)]
    fuzzed += [campaign("bundles", 10_000), campaign("traces", 10_000)]
    write("here/fuzz-2026-01-02.json", {"campaigns": fuzzed})
    return tmp_path


def test_rows_have_the_files_numbers(results: Path) -> None:
    text = checks(results)
    assert text.startswith(HEAD)
    for part in (
        "| 44 s | 600 s |",
        "| 82 ms | 500 ms |",
        "| 90.0% | 92%: missed |",  # 360 of 400 lines
        "| 75.0% (150 of 200) | 80%: missed |",  # the latest day's
        "on mlir, numba | 3,309 cases, 6,181 calls, 60 minutes: no failures | none |",
        "| 88% of 206; intervals overlap of 98% | 90%: missed |",
        "| 11,000,000, 2 findings, mended | 10,000,000 |",
        "2 other readers of files, without a crash or hang | 20,000, no findings |  |",
    ):
        assert part in text, part


def test_a_run_that_did_not_pass_says_so(results: Path) -> None:
    drawn = DRAWN | {"failures": [{}, {}], "passed": False}
    (results / "here" / "verify-2026-01-02.json").write_text(json.dumps(drawn))
    assert "60 minutes: 2 failures | none: missed |" in checks(results)


def test_nothing_is_said_of_what_was_not_checked(tmp_path: Path) -> None:
    assert checks(tmp_path) == ""
