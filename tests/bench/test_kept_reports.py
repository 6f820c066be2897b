"""Whole runs that are kept: the newest of each suite and machine is what pages show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.bench.report_documents import make_document
from tilewright.bench.report.kept import default_name, newest_reports
from tilewright.bench.results_page import results_page


def test_the_newest_run_of_each_suite_is_shown(tmp_path: Path) -> None:
    made = make_document()
    old = replace(made, date="2026-01-09T00:00:00+00:00", about="old")
    new = replace(made, date="2026-02-01T00:00:00+00:00", about="new")
    other = replace(old, suite="other")
    for document in (new, old, other):
        path = tmp_path / default_name(document)
        path.parent.mkdir(exist_ok=True)
        path.write_text(document.to_json(), encoding="utf-8")
    (tmp_path / made.machine.kind / "bench-agreement-2026-03-01.json").write_text("{}")
    found = newest_reports(tmp_path)
    assert [(x.suite, x.date) for _, x in found] == sorted(
        [(made.suite, new.date), ("other", old.date)]
    )
    text = results_page(tmp_path)
    assert f"bench-{made.suite}-2026-02-01.html" in text
    assert "2026-01-09" in text and f"bench-{made.suite}-2026-01-09" not in text
    assert f"| torch-eager | {made.mean_ratio('torch-eager'):.3g}" in text
