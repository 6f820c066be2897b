"""The report as one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import tilewright
from tilewright.bench.report import rows as r
from tilewright.bench.report import words as w
from tilewright.bench.report.charts import charts, styles
from tilewright.bench.report.document import OURS, Document, ProblemResults
from tilewright.bench.report.shapes import Chart, Style

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """Of a table; ``first``: set apart from the row above."""

    cells: list[str]
    first: bool = False


@dataclass(frozen=True)
class Card:
    """One provider in short."""

    style: Style
    ratio: str
    floats: str
    faster: int
    slower: int
    undecided: int

    @property
    def total(self) -> int:
        return self.faster + self.slower + self.undecided


def page(document: Document) -> str:
    """The whole page. Everything from the document is escaped."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["slug"] = lambda text: re.sub(r"\W+", "-", str(text)).strip("-").lower()
    environment.filters["px"] = lambda number: f"{number:.1f}".removesuffix(".0")
    looks = styles(document)
    return environment.get_template("page.html.j2").render(
        document=document,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        version=tilewright.__version__,
        machine=w.machine_text(document),
        noise=w.noise_text(document),
        noisy=document.noise.worst >= w.FAIR,
        confidence=w.percent(document.method.confidence),
        cards=[_card(document, looks[name]) for name in document.measured if name != OURS],
        groups=list(_groups(charts(document))),
        sections=[_section(document, name) for name in document.sections],
        launches={
            "head": ["provider", *document.sections],
            "rows": [Row(cells) for cells in r.launch_rows(document)],
        },
        providers=[Row(cells) for cells in r.provider_rows(document)],
        method=r.method_lines(document),
        like_with_like=w.LIKE_WITH_LIKE,
    )


def _card(document: Document, look: Style) -> Card:
    mean = document.mean_ratio(look.name)
    floats = f", {w.FLOATS}" if document.with_floats(look.name) else ""
    return Card(look, f"{mean:.3g}{w.TIMES}", floats, **w.verdicts(document, look.name))


def _groups(found: Iterable[Chart]) -> Iterable[tuple[str, list[Chart]]]:
    """Charts under the headings of the page."""
    titles = {"speed": "Speed-ups", "latency": "Time against size"}
    groups: dict[str, list[Chart]] = {}
    for chart in found:
        title = titles.get(chart.key.partition("-")[0], "Roofline and error")
        groups.setdefault(title, []).append(chart)
    return groups.items()


def _section(document: Document, name: str) -> dict[str, Any]:
    problems = [problem for problem in document.problems if problem.section == name]
    return {"name": name, "problems": [_problem(problem) for problem in problems]}


def _problem(problem: ProblemResults) -> dict[str, Any]:
    return {
        "name": problem.name,
        "brief": r.brief(problem),
        "facts": r.facts(problem),
        "head": ["provider", "form", *r.NUMBERS],
        "rows": [Row(cells) for cells in r.result_rows(problem)],
        "without": r.without_times(problem),
    }
