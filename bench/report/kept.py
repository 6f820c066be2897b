"""Whole runs of suites that are kept in ``bench/results``."""

from __future__ import annotations

from pathlib import Path

from tilewright.bench.records import RESULTS
from tilewright.bench.report.document import Document, load


def default_name(document: Document) -> Path:
    """Where a run is kept: ``<machine class>/bench-<suite>-<date>.json``."""
    return Path(document.machine.kind) / f"bench-{document.suite}-{document.date[:10]}.json"


def newest_reports(root: Path = RESULTS) -> list[tuple[Path, Document]]:
    """The newest run of each suite on each machine class, with its file."""
    newest: dict[tuple[str, str], tuple[Path, Document]] = {}
    for path in sorted(root.glob("*/bench-*-????-??-??.json")):
        if not path.name.startswith("bench-agreement-"):
            document = load(path)
            newest[document.suite, document.machine.kind] = path, document  # names sort by date
    return [newest[key] for key in sorted(newest)]
