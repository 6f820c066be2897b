"""The report in Markdown: for issues, pull requests and pages of a repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tilewright.bench.report import rows as r
from tilewright.bench.report import words as w
from tilewright.bench.report.document import OURS, Document

_SPECIAL = "\\`*_[]<>|#"


def markdown(document: Document) -> str:
    """A summary, a table for each section, the providers, the method."""
    lines = [
        f"# {_plain(document.about)}",
        "",
        f"tilewright bench {_plain(document.suite)}, {document.date[:10]}. "
        f"{_plain(w.machine_text(document))}.",
        "",
        *(["**A trial run: these numbers mean nothing.**", ""] if document.method.quick else []),
        f"**{_plain(w.noise_text(document))}**"
        if document.noise.worst >= w.FAIR
        else w.noise_text(document),
        "",
        *summary(document),
        "",
        "Speed-up: the provider's time over Tilewright's, formed within rounds; above, its "
        f"geometric mean. Undecided: the interval holds 1. {w.LIKE_WITH_LIKE}",
    ]
    for section in document.sections:
        lines += ["", f"## {_plain(section)}", ""]
        cells = [
            [problem.name if at == 0 else "", *row]
            for problem in document.problems
            if problem.section == section
            for at, row in enumerate(r.result_rows(problem))
        ]
        lines += _table(("problem", "provider", "form", *r.NUMBERS), cells)
        without = {
            f"- {_plain(problem.name)}: {_plain(line)}"
            for problem in document.problems
            if problem.section == section
            for line in r.without_times(problem)
        }
        lines += ["", *sorted(without)] if without else []
    lines += ["", "## What a call costs", ""]
    lines += _table(("provider", *document.sections), r.launch_rows(document))
    lines += ["", "## Providers", ""]
    lines += _table(("provider", "state", "version", "how to get it"), r.provider_rows(document))
    lines += [
        "",
        "## How it was measured",
        "",
        *(f"- {_plain(x)}" for x in r.method_lines(document)),
    ]
    return "\n".join([*lines, ""])


def summary(document: Document) -> list[str]:
    """A table: the mean ratio to each provider, and how many problems have which verdict."""
    found = []
    for name in document.measured:
        if name != OURS:
            counts = w.verdicts(document, name)
            ratio = f"{document.mean_ratio(name):.3g}{w.TIMES}"
            found.append(
                [w.rival(document, name), ratio, *(str(count) for count in counts.values())]
            )
    return _table(("against", "speed-up", "faster", "slower", "undecided"), found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = "".join(f"\\{c}" if c in _SPECIAL else c for c in text)
    return " ".join(escaped.split())
