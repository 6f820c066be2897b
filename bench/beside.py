"""The table of docs/peers.md: between which ratios we lie beside whom, from our own results only.

``tilewright bench readme`` writes it; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tilewright.bench.records import RESULTS, newest_records
from tilewright.bench.report.kept import newest_reports
from tilewright.bench.report.words import rival
from tilewright.bench.results_page import GPU_SUITES, TOPICS, gpu_peers, gpu_runs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "peers.md"
_TIMES = "\N{MULTIPLICATION SIGN}"
HEAD = """\
| beside | measured | on | comparisons | their time ÷ ours | we are slower in |
|---|---|---|---|---|---|
"""


def beside_table(results: Path = RESULTS) -> str:
    """A row for each peer, topic and machine: least and largest ratio, and how many are below 1."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for key, ratio in (*_on_cpus(results), *_in_suites(results), *_on_gpus(results)):
        ratios.setdefault(key, []).append(ratio)
    return HEAD + "".join(_line(*key, values) for key, values in sorted(ratios.items()))


def _on_cpus(results: Path) -> Iterator[tuple[tuple[str, str, str], float]]:
    for topic, title in TOPICS.items():
        for record in newest_records(topic, results):
            for row in record.comparisons:
                if not row.peer.startswith("our "):  # two forms of ours
                    yield (row.peer, title, record.machine.kind), row.ratio


def _in_suites(results: Path) -> Iterator[tuple[tuple[str, str, str], float]]:
    for _, document in newest_reports(results):
        for provider in document.measured:
            name = rival(document, provider)
            for _, ratio in document.headline(provider):
                yield (name, f"suite {document.suite}", document.machine.kind), ratio.median


def _on_gpus(results: Path) -> Iterator[tuple[tuple[str, str, str], float]]:
    for suite, (title, _) in GPU_SUITES.items():
        for kind, data in gpu_runs(suite, results):
            for row in data["rows"].values():
                for peer, theirs, ours in gpu_peers(row):
                    yield (f"{peer} (GPU)", title, kind), theirs / ours


def _line(peer: str, topic: str, kind: str, values: list[float]) -> str:
    low, high = f"{min(values):.2f}{_TIMES}", f"{max(values):.2f}{_TIMES}"
    span = low if low == high else f"{low} to {high}"
    lost = sum(value < 1 for value in values)
    return f"| {peer} | {topic} | {kind} | {len(values)} | {span} | {lost or '–'} |\n"  # noqa: RUF001
